"""Everything that is opened, checked and decided before long work begins."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoprune.core.problem import Method
from autoprune.core.sparsity import Target, reading
from autoprune.data.cache import cached_windows
from autoprune.data.hub import MIRROR_VARIABLE
from autoprune.data.texts import parse_source
from autoprune.data.windows import Windows, calibration_windows, evaluation_windows
from autoprune.errors import OutputError, RecipeError
from autoprune.events import Emit, Notice, Phase
from autoprune.machine.ranks import ALONE, Ranks
from autoprune.model.anatomy import check_coverage, select_layers
from autoprune.model.layers import Layer
from autoprune.recipe.recipe import Recipe
from autoprune.run.memory import Layout, Load, choose_layout, human, parse_memory, shape_of
from autoprune.run.open import Subject, fits, held_bytes
from autoprune.steps import passes
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.complete import check_complete
from autoprune.storage.locate import DEMO, locate
from autoprune.storage.manifest import versions
from autoprune.storage.pruned import GivenPattern, check_ancestry, check_pattern
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.store import CheckpointStore

DEFAULT_SEQLEN = 2048
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TOKENS_PER_PASS = 2048  # windows are batched up to about this many tokens per forward pass


@dataclass(frozen=True)
class Plan:
    """What will be done, with everything at hand that can be checked beforehand."""

    subject: Subject
    methods: tuple[Method, ...]
    target: Target | None
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


def needs_data(recipe: Recipe, methods: tuple[Method, ...]) -> bool:
    """Whether any pass looks at calibration data, or layer errors are asked for."""
    return recipe.pruning.layer_errors or any(method.statistic is not None for method in methods)


def make_plan(recipe: Recipe, subject: Subject, emit: Emit, *, measure: bool, ranks: Ranks = ALONE) -> Plan:
    """Checks the recipe against the model and the texts, and cuts the windows; of several ranks, the first one cuts
    them for all.

    Raises: AutoPruneError for everything that would make the run fail later.
    """
    target = recipe.target
    dense_only = target is None and recipe.rebuild.pruned_model is None
    methods = () if dense_only else _methods(recipe, subject)
    seqlen = choose_seqlen(recipe, subject.context)
    for source in recipe.evaluation.eval_data if measure else ():
        parse_source(source, "--eval_data")
    chosen: Mapping[int, tuple[Layer, ...]] = {}
    if methods:
        check_coverage(subject.store.anatomy, recipe.pruning.allow_partial)
        chosen = select_layers(subject.store.anatomy, recipe.pruning.ignore, target)
        if isinstance(methods[0], GivenPattern):
            check_pattern(methods[0].pruned, chosen, target, recipe.pruning.sparsity_ratio, emit)
    if recipe.barber.compute_dtype == "tf32" and subject.store.device.type != "cuda":
        raise RecipeError(
            f"--compute_dtype tf32 is a mode of CUDA devices, and blocks run on {subject.store.device}; choose float32"
            " or bfloat16"
        )
    if target and (note := reading(target)):
        emit(Notice(note))
    if subject.context is None and recipe.calibration.seqlen is None:
        emit(
            Notice(
                f"the model's configuration names no context length; windows of {DEFAULT_SEQLEN} tokens are used"
                " (--seqlen changes that)"
            )
        )
    if methods and subject.left_alone:
        emit(
            Notice(
                f"the blocks of {subject.store.anatomy.name} are pruned; left as they are:"
                f" {', '.join(subject.left_alone)}"
            )
        )
    vocabulary = subject.config.vocab_size
    calibration = (
        ranks.from_first(lambda: _calibration(recipe, subject, seqlen, vocabulary, emit))
        if needs_data(recipe, methods)
        else None
    )
    evaluation = _evaluation(recipe, subject, seqlen, vocabulary, emit) if measure and ranks.first else {}
    windows = [calibration, *evaluation.values()]
    layout = ranks.from_first(
        lambda: _layout(recipe, subject, methods, windows, emit, batch_size(recipe, seqlen), ranks.count)
    )
    if calibration:
        _check_ranks(len(calibration.ids), layout.batch, ranks.count)
    if calibration and (few := len(torch.unique(calibration.ids, dim=0))) < len(calibration.ids) // 2:
        emit(
            Notice(
                f"the calibration text is short: only {few} of the {len(calibration.ids)} windows drawn from it differ"
            )
        )
    return Plan(subject, methods, target, chosen, calibration, evaluation, seqlen, layout, ranks)


def _check_ranks(samples: int, batch: int, ranks: int) -> None:
    """Raises: RecipeError if there are more processes than micro-batches."""
    if (batches := -(-samples // batch)) < ranks:
        raise RecipeError(
            f"{ranks} processes can't share {samples} calibration windows that run {batch} at a time: that makes"
            f" {batches} portions; start {batches} processes or fewer, give more --nsamples, or a smaller --batch_size"
        )


def _layout(
    recipe: Recipe,
    subject: Subject,
    methods: tuple[Method, ...],
    windows: Sequence[Windows | None],
    emit: Emit,
    batch: int,
    ranks: int,
) -> Layout:
    """Windows per pass and the place of hidden states; with a budget for each process, the nearest to what was asked
    for that fits.

    Raises: RecipeError if nothing fits.
    """
    anatomy = subject.store.anatomy
    if anatomy.has_experts and recipe.rebuild.prune_barber:
        batch = 1  # experts' gradients are taken sample by sample
    at_once = recipe.pruning.true_sequential and bool(methods) and methods[0].statistic is not None
    if at_once:
        _check_in_sequence(anatomy.has_experts, ranks)
    wanted = Layout(batch, recipe.run.activations, at_once)
    if recipe.run.memory is None or not isinstance(subject.store, CheckpointStore):
        return wanted
    budget = parse_memory(recipe.run.memory)
    shape = shape_of(
        subject.store.model, anatomy, subject.store.skeleton.storage_dtype, moved=subject.store.device.type != "cpu"
    )
    fixed = recipe.run.activations != "cpu"  # the default place may be changed to fit, one that was asked for may not
    whole = held_bytes(subject.checkpoint, recipe) if subject.store.resident and subject.checkpoint else 0
    load = _load(recipe, subject, windows, batch, ranks)
    layout, need = choose_layout(shape, methods, load, wanted=wanted, fixed_place=fixed, budget=budget - whole)
    chosen = f"{layout.batch} windows per pass, hidden states on {layout.activations}"
    emit(Notice(f"plan for {human(budget)}: {chosen}, about {human(need.total + whole)} at the peak ({need.phase})"))
    return layout


def _load(recipe: Recipe, subject: Subject, windows: Sequence[Windows | None], batch: int, ranks: int) -> Load:
    """What one process of several sends through the model: its part of the first ``windows``, which calibrate; the
    others evaluate.
    """
    calibration, *evaluation = windows
    samples, tokens = calibration.ids.shape if calibration else (0, 1)
    longest = max(
        (held.ids.shape for held in evaluation if held), key=lambda shape: shape[0] * shape[1], default=(0, 1)
    )
    checkpoint = subject.checkpoint
    held = (
        held_bytes(checkpoint, recipe) if checkpoint and not subject.store.resident and fits(checkpoint, recipe) else 0
    )
    return Load(
        samples=min(samples, -(-samples // (batch * ranks)) * batch),
        tokens=tokens,
        evaluated=longest[0],
        evaluated_tokens=longest[1],
        models=2 if recipe.rebuild.pruned_model else 1,
        held=held,
    )


def _check_in_sequence(experts: bool, ranks: int) -> None:
    """Raises: RecipeError if input groups can't be pruned one after the other inside a block."""
    if experts:
        raise RecipeError(
            "--true_sequential can't be used on a mixture of experts: an expert that sees few tokens needs what all of"
            " them see; leave it out"
        )
    if ranks > 1:
        raise RecipeError(
            "--true_sequential sends all samples through a block at once, so several processes can't share them; leave"
            " it out"
        )


def batch_size(recipe: Recipe, seqlen: int) -> int:
    """Windows per forward pass."""
    return recipe.run.batch_size or max(1, TOKENS_PER_PASS // seqlen)


def check_apart(target: Path, recipe: Recipe) -> None:
    """Raises: OutputError if the result would be written into a model that the recipe reads."""
    for flag, word in (("--model", recipe.model.model), ("--pruned_model", recipe.rebuild.pruned_model)):
        source = DEMO if word == "demo" else Path(word).expanduser() if word else None
        if source and source.is_dir() and target.resolve().is_relative_to(source.resolve()):
            raise OutputError(
                f"--save_model {target} lies in the directory of {flag} {word}, which must stay as it is; choose"
                " another directory"
            )


def source_name(word: str) -> str:
    """The user's word for a text without the folders that it lies in."""
    return Path(word).name if Path(word).exists() else word


def _methods(recipe: Recipe, subject: Subject) -> tuple[Method, ...]:
    if recipe.rebuild.pruned_model is None:
        return passes(recipe)
    if not isinstance(subject.store, CheckpointStore):
        raise RecipeError(
            "--pruned_model works with a dense model on disk: give its directory or hub id instead of a model in"
            " memory"
        )
    checkpoint = Checkpoint.open(locate(recipe.rebuild.pruned_model, recipe.model.cache_dir))
    skeleton = build_skeleton(
        checkpoint, "auto", subject.store.device, trust_remote_code=recipe.model.trust_remote_code
    )
    check_complete(skeleton)
    pruned = CheckpointStore(skeleton, resident=False)
    check_ancestry(subject.store, pruned)
    return (GivenPattern(pruned), *passes(recipe))


def _calibration(recipe: Recipe, subject: Subject, seqlen: int, vocabulary: int, emit: Emit) -> Windows:
    options = recipe.calibration
    emit(Phase(f"calibration data {source_name(options.calibration_data)}"))

    def draw() -> Windows:
        return calibration_windows(
            options.calibration_data,
            subject.load_tokenizer,
            nsamples=options.nsamples,
            seqlen=seqlen,
            seed=options.seed,
            vocab_size=vocabulary,
            datasets_cache_dir=options.datasets_cache_dir,
        )

    return cached_windows(
        _key(subject, options.calibration_data, seqlen, nsamples=options.nsamples, seed=options.seed), draw
    )


def _evaluation(recipe: Recipe, subject: Subject, seqlen: int, vocabulary: int, emit: Emit) -> dict[str, Windows]:
    windows = {}
    words = tuple(dict.fromkeys(recipe.evaluation.eval_data))
    short = [source_name(word) for word in words]
    for word in words:
        name = source_name(word) if short.count(source_name(word)) == 1 else word
        emit(Phase(f"evaluation data {name}"))

        def cut(word: str = word) -> Windows:
            cache = recipe.calibration.datasets_cache_dir
            return evaluation_windows(
                word, subject.load_tokenizer, seqlen=seqlen, vocab_size=vocabulary, datasets_cache_dir=cache
            )

        windows[name] = cached_windows(_key(subject, word, seqlen, purpose="evaluation"), cut)
    return windows


def _key(subject: Subject, word: str, seqlen: int, **more: object) -> dict[str, object] | None:
    """What windows depend on: text, tokenizer, length, versions; None for a model in memory, whose tokenizer has no
    files to know it by.
    """
    if subject.checkpoint is None:
        return None
    files = [Path(word).expanduser(), *(subject.checkpoint.directory / name for name in TOKENIZER_FILES)]
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    mirror = os.environ.get(MIRROR_VARIABLE)
    return {
        "source": word,
        "mirror": mirror,
        "model": subject.name,
        "files": stamps,
        "seqlen": seqlen,
        **versions(),
        **more,
    }
