"""Everything that is opened, checked and decided before long work begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from autoprune.core.sparsity import Target, reading
from autoprune.core.statistics import CrossGram
from autoprune.data.handed import EVALUATION, source_of
from autoprune.data.windows import Windows
from autoprune.errors import OutputError, RecipeError
from autoprune.events import Emit, Notice
from autoprune.machine.ranks import ALONE, Ranks
from autoprune.model.anatomy import check_coverage, select_layers
from autoprune.model.layers import Layer
from autoprune.model.pruning import check_in_sequence, layer_targets
from autoprune.recipe.recipe import Recipe
from autoprune.run.estimate import arithmetic, clock, flops_per_second
from autoprune.run.layout import batch_size, choose_for, looks_first
from autoprune.run.memory import Layout, check_whole, shape_of
from autoprune.run.open import Subject
from autoprune.run.texts import calibration_of, evaluation_of
from autoprune.steps.base import Step
from autoprune.steps.price import Shape
from autoprune.steps.table import make_steps
from autoprune.steps.whole import ModelStep
from autoprune.storage.complete import check_complete
from autoprune.storage.locate import DEMO, locate
from autoprune.storage.pruned import GivenPattern, check_ancestry, check_pattern, trained_in
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.source import open_checkpoint
from autoprune.storage.store import CheckpointStore

DEFAULT_SEQLEN = 2048


@dataclass(frozen=True)
class Plan:
    """What will be done, with everything at hand that can be checked beforehand."""

    subject: Subject
    steps: tuple[Step, ...]
    target: Target | None
    targets: Mapping[str, Target]
    chosen: Mapping[int, tuple[Layer, ...]]
    calibration: Windows | None
    evaluation: Mapping[str, Windows]
    seqlen: int
    layout: Layout
    ranks: Ranks = ALONE


def choose_seqlen(recipe: Recipe, context: int | None) -> int:
    """Tokens per window. Raises: RecipeError if more are asked for than the model can attend to."""
    asked = recipe.calibration.seqlen
    if asked is not None and context is not None and asked > context:
        raise RecipeError(
            f"--seqlen {asked} is more than the model's context of {context} tokens; give {context} or less"
        )
    return asked or min(DEFAULT_SEQLEN, context or DEFAULT_SEQLEN)


def needs_data(recipe: Recipe, steps: tuple[Step, ...]) -> bool:
    """Whether any step looks at calibration data, or layer errors are asked for."""
    return recipe.pruning.layer_errors or any(step.needs.samples for step in steps)


def make_plan(recipe: Recipe, subject: Subject, emit: Emit, *, measure: bool, ranks: Ranks = ALONE) -> Plan:
    """Checks the recipe against the model and the texts, and cuts the windows; of several ranks, the first one cuts
    them for all.

    Raises: AutoPruneError for everything that would make the run fail later.
    """
    target = recipe.target
    dense_only = target is None and recipe.chosen.pruned_model is None
    steps = () if dense_only else _steps(recipe, subject)
    seqlen = choose_seqlen(recipe, subject.context)
    for source in recipe.evaluation.eval_data if measure else ():
        source_of(recipe, source, EVALUATION)
    chosen: Mapping[int, tuple[Layer, ...]] = {}
    if steps:
        check_coverage(subject.store.anatomy, recipe.pruning.allow_partial)
        chosen = select_layers(subject.store.anatomy, recipe.pruning.ignore, target, recipe.pruning.include)
        if isinstance(steps[0], GivenPattern):
            check_pattern(steps[0], chosen, target, recipe.pruning.sparsity_ratio, emit)
    _check_steps(recipe, subject, steps, chosen, ranks, emit)
    _tell(recipe, subject, target, steps, emit)
    looks = needs_data(recipe, steps)
    calibration = ranks.from_first(lambda: calibration_of(recipe, subject, seqlen, emit)) if looks else None
    evaluation = evaluation_of(recipe, subject, seqlen, emit) if measure and ranks.first else {}
    windows, batch = [calibration, *evaluation.values()], batch_size(recipe, seqlen)
    layout = ranks.from_first(lambda: choose_for(recipe, subject, steps, windows, emit, batch, ranks.count))
    if calibration:
        _check_ranks(len(calibration.ids), layout.batch, ranks.count)
        check_held_out(steps, len(calibration.ids), layout.batch)
    if calibration and (few := len(torch.unique(calibration.ids, dim=0))) < len(calibration.ids) // 2:
        emit(
            Notice(
                f"the calibration text is short: only {few} of the {len(calibration.ids)} windows drawn from it differ"
            )
        )
    if calibration and any(isinstance(step, ModelStep) for step in steps):
        shape = calibrated_shape(subject, calibration, layout.batch)
        check_whole(shape, steps, subject.store.device, "--effort medium")
    if recipe.chosen.effort and calibration:
        emit(Notice(_announced(recipe, subject, steps, calibration)))
    targets = layer_targets(subject.store.anatomy, chosen, target, recipe.ratios)
    return Plan(subject, steps, target, targets, chosen, calibration, evaluation, seqlen, layout, ranks)


def _check_steps(
    recipe: Recipe,
    subject: Subject,
    steps: tuple[Step, ...],
    chosen: Mapping[int, tuple[Layer, ...]],
    ranks: Ranks,
    emit: Emit,
) -> None:
    """Raises: RecipeError if a step does not fit the target, the machine, the model, or the other options."""
    blocks = subject.store.anatomy.blocks if chosen else ()
    layers = {block.name: [layer.name for layer in chosen[block.index]] for block in blocks}
    experts = sum(layer.name in block.experts for block in blocks for layer in chosen[block.index])
    for step in steps:
        step.check(recipe.target)
        step.check_machine(subject.store.device.type, ranks.count)
        step.check_layers(layers)
        if step.needs.survey and recipe.pruning.ratio:
            raise RecipeError(f"{step.name} settles the ratio of every layer, and so does --ratio; leave out one")
        if experts and CrossGram in step.needs.also:
            emit(
                Notice(
                    f"{step.name}: no expert sees the same tokens in the dense and in the pruned model, so {experts}"
                    " layers of experts keep their dense weights as target"
                )
            )
    if recipe.pruning.true_sequential and steps:
        check_in_sequence(steps)
        if not looks_first(steps):
            emit(Notice("--true_sequential changes nothing here: no step of the first pass looks at data"))


def say_of_weights(subject: Subject, emit: Emit, done: str = "pruned") -> None:
    """What the user should know of the weights that are read: what they stand for, and which stay as they are."""
    if subject.checkpoint and subject.checkpoint.note:
        emit(Notice(f"{subject.name}: {subject.checkpoint.note}"))
    if subject.left_alone:
        emit(
            Notice(
                f"the blocks of {subject.store.anatomy.name} are {done}; left as they are:"
                f" {', '.join(subject.left_alone)}"
            )
        )


def _tell(recipe: Recipe, subject: Subject, target: Target | None, steps: tuple[Step, ...], emit: Emit) -> None:
    """What a user should know before anything is done."""
    if target and (note := reading(target)):
        emit(Notice(note))
    if subject.context is None and recipe.calibration.seqlen is None:
        emit(
            Notice(
                f"the model's configuration names no context length; windows of {DEFAULT_SEQLEN} tokens are used"
                " (--seqlen changes that)"
            )
        )
    name, config = type(subject.store.model).__name__, subject.store.model.config
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True):
        emit(
            Notice(
                f"{name} sees the tokens behind the one that it predicts (its config says is_decoder: false), so what"
                " is called perplexity here is none"
            )
        )
    if steps:
        say_of_weights(subject, emit)
    for step, names in _idle(recipe).items() if steps else ():
        here = ", ".join(recipe.steps)
        emit(Notice(f"{' and '.join(names)}: about {step}, which is none of the steps here ({here}); nothing changes"))


def _idle(recipe: Recipe) -> dict[str, list[str]]:
    """By step that is not taken: the flags of it that were given, and not as usual."""
    taken = {type(options) for name in recipe.steps for options in recipe.with_others(name)}
    given = {
        step: [f"--{f.name}" for f in dataclasses.fields(options) if getattr(options, f.name) != f.default]
        for step, options in recipe.step_options.items()
        if type(options) not in taken
    }
    return {step: names for step, names in given.items() if names}


def _announced(recipe: Recipe, subject: Subject, steps: tuple[Step, ...], calibration: Windows) -> str:
    """What an effort stands for, and how long it will roughly take."""
    shape, device = calibrated_shape(subject, calibration, 1), subject.store.device
    samples, tokens = calibration.ids.shape
    time = clock(arithmetic(shape, steps) / flops_per_second(device))
    titles = ", then ".join(step.title for step in steps)
    return f"--effort {recipe.chosen.effort}: {titles}, on {samples} windows of {tokens} tokens; {time} here"


def calibrated_shape(subject: Subject, calibration: Windows, batch: int) -> Shape:
    """The counts of the model and of what is sent through it."""
    store, (samples, tokens) = subject.store, calibration.ids.shape
    shape = shape_of(store.model, store.anatomy, next(store.model.parameters()).dtype, moved=False)
    return dataclasses.replace(shape, samples=samples, tokens=tokens, batch=batch)


def check_held_out(steps: Sequence[Step], samples: int, batch: int) -> None:
    """Raises: RecipeError if a step holds samples out and there is only one micro-batch."""
    judging = [step.name for step in steps if step.needs.held_out]
    if judging and samples <= batch:
        raise RecipeError(
            f"{judging[0]} judges by samples that are held out, but all {samples} windows run as one batch; give a"
            f" smaller --batch_size (now {batch}) or more --nsamples"
        )


def _check_ranks(samples: int, batch: int, ranks: int) -> None:
    """Raises: RecipeError if there are more processes than micro-batches."""
    if (batches := -(-samples // batch)) < ranks:
        raise RecipeError(
            f"{ranks} processes can't share {samples} calibration windows that run {batch} at a time: that makes"
            f" {batches} portions; start {batches} processes or fewer, give more --nsamples, or a smaller --batch_size"
        )


def check_apart(target: Path, recipe: Recipe) -> None:
    """Raises: OutputError if the result would be written into a model that the recipe reads."""
    for what, word in (("the model", recipe.model.model), ("--pruned_model", recipe.chosen.pruned_model)):
        source = DEMO if word == "demo" else Path(word).expanduser() if word else None
        if source and source.is_dir() and target.resolve().is_relative_to(source.resolve()):
            raise OutputError(
                f"the result would go to {target}, which lies in the directory of {what} {word}, which must stay as it"
                " is; choose another directory"
            )


def _steps(recipe: Recipe, subject: Subject) -> tuple[Step, ...]:
    steps = make_steps(recipe.steps, recipe.step_options)
    if recipe.chosen.pruned_model is None:
        return steps
    if not isinstance(subject.store, CheckpointStore):
        raise RecipeError(
            "--pruned_model works with a dense model on disk: give its directory or hub id instead of a model in"
            " memory"
        )
    checkpoint = open_checkpoint(locate(recipe.chosen.pruned_model, recipe.model.cache_dir))
    skeleton = build_skeleton(
        checkpoint, "auto", subject.store.device, trust_remote_code=recipe.model.trust_remote_code
    )
    check_complete(skeleton)
    pruned = CheckpointStore(skeleton, resident=False)
    trained = trained_in(pruned, recipe.steps)
    check_ancestry(subject.store, pruned, trained)
    return (GivenPattern(pruned, trained), *steps)
