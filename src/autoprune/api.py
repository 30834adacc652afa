"""The Python front door, and the only place where the parts are put together."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from autoprune.errors import DataError, ModelError
from autoprune.measuring import accuracy, count_zeros, measured
from autoprune.model.events import BlockResult, Emit, Notice, Phase, silent
from autoprune.model.pipeline import Pass, prepare_inputs, prune_blocks
from autoprune.model.replay import require_replay
from autoprune.model.stages import Inputs
from autoprune.model.stream import Place, Stream
from autoprune.planning import (
    AnyStore,
    Plan,
    Subject,
    check_apart,
    check_values,
    held_model,
    make_plan,
    method_label,
    open_model,
    target_label,
)
from autoprune.recipe import Recipe, recipe_from_flat
from autoprune.report.frames import layers_frame
from autoprune.report.results import EvaluationRow, Perplexities, PruningSummary
from autoprune.report.save import check_report_directory, save_row
from autoprune.storage.manifest import manifest, model_card, provenance
from autoprune.storage.stores import CheckpointStore
from autoprune.storage.writer import MANIFEST, CheckpointWriter, Workplace, check_target, companions, delete_result, writing_to

if TYPE_CHECKING:
    from pandas import DataFrame

RESIDENT_SHARE = 0.5  # of the free memory: a checkpoint up to this size is evaluated in memory, a larger one block by block
REPLAY_TOKENS = 16  # of two windows: what the replay check runs on
NO_ERRORS = "no calibration data was read, so layer errors were not measured (--layer_errors measures them)"


@dataclass(frozen=True)
class PruneResult:
    """What a run did. ``model`` is the pruned model where it is in memory, ``directory`` the checkpoint that was written."""

    recipe: Recipe
    row: EvaluationRow
    model: nn.Module | None = None
    directory: Path | None = None

    @property
    def summary(self) -> PruningSummary | None:
        """Per-layer outcomes; None when only the dense model was evaluated."""
        return self.row.pruning

    @property
    def perplexity(self) -> dict[str, float]:
        """Perplexity by evaluation text."""
        return {result.source: result.perplexity for result in self.row.perplexity}

    def to_pandas(self) -> DataFrame:
        """What became of every layer, one line each; no line where nothing was pruned."""
        return layers_frame(self.summary or PruningSummary(()))


def prune(model: str | Path | nn.Module, *, tokenizer: PreTrainedTokenizerBase | None = None, emit: Emit = silent, **options: Any) -> PruneResult:
    """Prunes a model: a hub id, a directory, ``"demo"``, or a model in memory, which is changed in place.

    ``options`` are the fields of the recipe, named as the flags are: ``prune_method="wanda", sparsity_ratio=0.5, …``;
    ``eval_data`` given means: measure perplexity. A model in memory needs its ``tokenizer`` unless calibration and
    evaluation data are token ids.
    Raises: AutoPruneError for everything that the user can mend.
    """
    held = model if isinstance(model, nn.Module) else None
    recipe = recipe_from_flat({"model": "" if held is not None else str(model), **options})
    with _modes_kept(held):
        return run(recipe, emit, held=held, tokenizer=tokenizer, measure="eval_data" in options or recipe.output.save_ppl is not None)


def evaluate(
    model: str | Path | nn.Module, *, tokenizer: PreTrainedTokenizerBase | None = None, emit: Emit = silent, **options: Any
) -> Perplexities:
    """Perplexity of a model as it is, on every text of ``eval_data``. Raises: AutoPruneError as ``prune`` does."""
    held = model if isinstance(model, nn.Module) else None
    recipe = recipe_from_flat({"model": "" if held is not None else str(model), "sparsity_ratio": 0, **options})
    with _modes_kept(held):
        return Perplexities(run(recipe, emit, held=held, tokenizer=tokenizer, measure=True).row.perplexity)


def run(
    recipe: Recipe, emit: Emit = silent, *, held: nn.Module | None = None, tokenizer: PreTrainedTokenizerBase | None = None, measure: bool | None = None
) -> PruneResult:
    """Runs a recipe from beginning to end: open, check, prune, write, evaluate, report, delete.

    ``measure`` says whether perplexity is wanted; None: if the recipe saves it, or if nothing else would come out.
    """
    output = recipe.output
    dense_only = recipe.target is None and not recipe.rebuild.pruned_model
    if measure is None:
        measure = bool(output.save_ppl) or not (output.save_zeroshot or (output.save_model and not dense_only))
    if output.save_model and dense_only:
        emit(Notice("--save_model: nothing is pruned at ratio 0, so nothing is written"))
    _check_outputs(recipe)
    subject = held_model(held, tokenizer) if held is not None else open_model(recipe, resident=not output.save_model)
    plan = make_plan(recipe, subject, emit, measure=measure)
    directory = Path(output.save_model) if output.save_model and plan.methods else None
    if not plan.methods:
        row = EvaluationRow("dense", "dense", count_zeros(subject.store), (), recipe.to_dict())
        after = subject
    else:
        summary = prune_and_write(recipe, plan, directory, emit)
        after = _reopened(recipe, subject, directory)
        row = EvaluationRow(method_label(recipe), target_label(plan.target), summary.sparsity, (), recipe.to_dict(), summary)
    row = dataclasses.replace(row, perplexity=measured(plan, after, emit), zeroshot=accuracy(recipe, plan, after, emit))
    save_row(recipe, row)
    if output.delete and directory:
        delete_result(directory)
        directory = None
    in_memory = subject.store.model if subject.store.resident else None
    return PruneResult(recipe, row, in_memory, directory)


def prune_and_write(recipe: Recipe, plan: Plan, directory: Path | None, emit: Emit) -> PruningSummary:
    """The pruning itself; the checkpoint appears in ``directory`` when it is whole."""
    subject, seconds = plan.subject, dict[str, float]()
    workplace = Workplace(directory, overwrite=recipe.output.overwrite) if directory else None
    if workplace:
        _begin(workplace, subject)
    try:
        with _timed(seconds, "check"):
            fingerprint = check_values(subject, emit)
        model = {"name": subject.name, "local": Path(subject.name).exists() or subject.name == "demo", "fingerprint": fingerprint}
        about = provenance(recipe, model, plan.calibration.provenance if plan.calibration else None)
        writer = _attach_writer(subject, workplace)
        summary = _prune_blocks(plan, emit, seconds)
        if workplace:
            emit(Phase("writing"))
            _write(workplace, writer, subject, about, summary, recipe, plan)
    except BaseException:
        if workplace:
            workplace.abandon()
        raise
    return summary


def _check_outputs(recipe: Recipe) -> None:
    """Everything about the places of output, and the tasks, that can be known before work begins."""
    output = recipe.output
    if output.save_model:
        check_target(Path(output.save_model), output.overwrite)
        check_apart(Path(output.save_model), recipe)
    for flag in ("save_ppl", "save_zeroshot"):
        if directory := getattr(output, flag):
            check_report_directory(Path(directory), flag)
    if output.save_zeroshot:
        from autoprune.evaluation.tasks import check_tasks

        check_tasks(recipe.zeroshot)


def _prune_blocks(plan: Plan, emit: Emit, seconds: dict[str, float]) -> PruningSummary:
    store = plan.subject.store
    with _timed(seconds, "capture"):
        inputs, streams = _streams(plan, store, emit)
    steps = [Pass(method, stream) for method, stream in zip(plan.methods, streams, strict=True)]
    results: list[BlockResult] = []
    emit(Phase("pruning", total=len(store.anatomy.blocks)))
    with _timed(seconds, "prune"):
        for result in prune_blocks(store, steps, plan.chosen, plan.target, inputs, emit):
            emit(result)
            results.append(result)
    warnings = [] if plan.calibration else [NO_ERRORS]
    for text in warnings:
        emit(Notice(text))
    layers = tuple(layer for result in results for layer in result.layers)
    return PruningSummary(layers, tuple(sub for result in results for sub in result.sub_blocks), seconds, tuple(warnings))


def _streams(plan: Plan, store: AnyStore, emit: Emit) -> tuple[Inputs, list[Stream | None]]:
    """One stream of hidden states for every pass that looks at data."""
    if plan.calibration is None:
        return Inputs.none(), [None for _ in plan.methods]
    emit(Phase("replay check"))
    require_replay(store, plan.calibration.ids[:2, :REPLAY_TOKENS])
    emit(Phase("embedding"))
    inputs, first = prepare_inputs(store, plan.calibration.ids, plan.batch, Place("cpu", store.device))
    errors_wanted = plan.methods[0].statistic is not None or len(plan.methods) == 1
    streams: list[Stream | None] = []
    for i, method in enumerate(plan.methods):
        looks = method.statistic is not None or (i == 0 and errors_wanted)
        streams.append(None if not looks else first if all(s is None for s in streams) else first.clone())
    return inputs, streams


def _begin(workplace: Workplace, subject: Subject) -> None:
    """Raises: OutputError if the place is taken or too small; ModelError if the model in memory can't be saved at all."""
    if subject.checkpoint:
        workplace.begin(subject.checkpoint.bytes, [path.name for path in companions(subject.checkpoint.directory)])
        return
    if not hasattr(subject.store.model, "save_pretrained"):
        raise ModelError(f"{subject.name} has no save_pretrained, so --save_model can't write it; leave save_model out and save result.model yourself")
    workplace.begin(_bytes(subject.store.model))


def _attach_writer(subject: Subject, workplace: Workplace | None) -> CheckpointWriter | None:
    if workplace is None or subject.checkpoint is None or not isinstance(subject.store, CheckpointStore):
        return None
    writer = CheckpointWriter(workplace, subject.checkpoint, subject.store.outside, len(subject.store.anatomy.blocks))
    subject.store.write_to(writer.write_block)
    return writer


def _write(workplace: Workplace, writer: CheckpointWriter | None, subject: Subject, about: dict[str, Any], summary: PruningSummary, recipe: Recipe, plan: Plan) -> None:
    if writer is not None:
        writer.finish()
    else:
        with writing_to(workplace.target):
            subject.store.model.save_pretrained(workplace.path)  # type: ignore[operator]
            with contextlib.suppress(DataError):  # without its tokenizer a model in memory is saved alone
                subject.load_tokenizer().save_pretrained(workplace.path)
    workplace.write("README.md", model_card(about, summary, method_label(recipe), target_label(plan.target)))
    workplace.write(MANIFEST, manifest(about, summary, workplace.shards(), workplace.names()))
    workplace.publish()


def _reopened(recipe: Recipe, subject: Subject, directory: Path | None) -> Subject:
    """What is evaluated: the written checkpoint itself, in memory if it fits, or the model that was pruned in memory."""
    if directory is None or not isinstance(subject.store, CheckpointStore) or subject.checkpoint is None:
        return subject
    fits = subject.checkpoint.bytes < RESIDENT_SHARE * psutil.virtual_memory().available
    subject.store.release_all()
    return open_model(recipe.with_model(str(directory)), resident=fits)


def _bytes(model: nn.Module) -> int:
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


@contextlib.contextmanager
def _modes_kept(held: nn.Module | None) -> Iterator[None]:
    """A model in memory runs in evaluation mode meanwhile; afterwards every part is in the mode in which it was."""
    modes = [(module, module.training) for module in held.modules()] if held is not None else []
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
