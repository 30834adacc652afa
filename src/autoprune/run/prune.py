"""The pruning of a plan, from the first hidden state to the published checkpoint; goes on where an earlier run
stopped.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import DataError, ModelError, OutputError, RecipeError
from autoprune.events import BlockResult, Emit, Notice, Phase
from autoprune.machine.ranks import Ranks
from autoprune.model.observe import FEW_TOKENS
from autoprune.model.pipeline import Pass, prepare_inputs, prune_blocks, replay_finished
from autoprune.model.stream import Place, Stream
from autoprune.model.work import Inputs
from autoprune.recipe.recipe import Recipe
from autoprune.results.codec import dump_json, first_difference
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.results.types import PruningSummary
from autoprune.run.check import check_model, check_values
from autoprune.run.labels import method_label, target_label
from autoprune.run.open import Subject
from autoprune.run.plan import Plan
from autoprune.storage.journal import Journal
from autoprune.storage.manifest import manifest, model_card, provenance
from autoprune.storage.placing import MANIFEST
from autoprune.storage.pruned import GivenPattern
from autoprune.storage.shards import CheckpointWriter
from autoprune.storage.stores import CheckpointStore
from autoprune.storage.values import ValueCheck
from autoprune.storage.writer import Workplace, companions, too_large, writing_to

NO_ERRORS = "no calibration data was read, so layer errors were not measured (--layer_errors measures them)"


@dataclass
class _Run:
    """One pruning run while it is under way."""

    recipe: Recipe
    plan: Plan
    emit: Emit
    workplace: Workplace | None  # only rank 0 has one
    seconds: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> Subject:
        """The model."""
        return self.plan.subject

    @property
    def ranks(self) -> Ranks:
        """The processes that share the run."""
        return self.plan.ranks


def prune_and_write(recipe: Recipe, plan: Plan, directory: Path | None, emit: Emit) -> PruningSummary:
    """Prunes; the checkpoint appears in ``directory`` when it is whole. Of several ranks, the first one writes.

    After an error a run that has finished a block stays beside ``directory``, to be resumed; a shorter one is removed.
    """
    output, ranks = recipe.output, plan.ranks
    workplace = (
        Workplace(directory, overwrite=output.overwrite, resume=output.resume) if directory and ranks.first else None
    )
    run = _Run(recipe, plan, emit, workplace)
    if workplace:
        workplace.tidy()
    complete = ranks.from_first(
        lambda: directory is not None and output.resume and not output.overwrite and (directory / MANIFEST).is_file()
    )
    if workplace and not complete:
        looking = sum(method.statistic is not None for method in plan.methods)
        _begin(
            workplace, run.subject, max(1, looking), emit
        )  # what each but the last of them leaves is kept until the end
    try:
        with _timed(run.seconds, "check"):
            run.about = _about(run, complete=complete)
            _require_same(ranks, run.about)
        if directory and complete:
            return ranks.from_first(lambda: _already_complete(run, directory))
        if ranks.from_first(lambda: workplace is not None and plan.subject.checkpoint is not None and workplace.whole):
            return ranks.from_first(lambda: _put_in_place(run))
        return _prune(run)
    except BaseException:
        if workplace and not complete:
            _stop(run, workplace)
        raise


def _about(run: _Run, *, complete: bool) -> dict[str, Any]:
    """What the run depends on; the model is checked on the way, and replayed unless there is nothing left to prune."""
    subject, calibration = run.subject, run.plan.calibration
    fingerprint = (
        check_model(subject, calibration.ids, run.emit)
        if calibration and not complete
        else check_values(subject, run.emit)
    )
    model: dict[str, Any] = {
        "name": subject.name,
        "local": Path(subject.name).exists() or subject.name == "demo",
        "fingerprint": fingerprint,
    }
    first = run.plan.methods[0]
    if isinstance(first, GivenPattern):
        model["pruned"] = ValueCheck(first.pruned.skeleton.checkpoint).finish()
    return provenance(run.recipe, model, calibration.provenance if calibration else None)


def _require_same(ranks: Ranks, about: dict[str, Any]) -> None:
    """Raises: RecipeError, on all ranks, if the model, versions or options of one are not those of rank 0."""
    first, *others = ranks.gathered(about)
    for rank, other in enumerate(others, start=1):
        if difference := first_difference(first, other):
            raise RecipeError(
                f"rank {rank} does not do what rank 0 does (rank 0's value first): {difference}; "
                "give all machines the same command, model and versions"
            )


def _prune(run: _Run) -> PruningSummary:
    journal = _journal(run)
    summary = _summary(run, _prune_blocks(run, journal))
    if run.workplace:
        run.emit(Phase("writing"))
        _write(run, journal.writer if journal else None, summary)
    return summary


def _journal(run: _Run) -> Journal | None:
    """The record of a run that writes shard by shard; None for models in memory."""
    store, checkpoint = run.subject.store, run.subject.checkpoint
    if run.workplace is None or checkpoint is None or not isinstance(store, CheckpointStore):
        return None
    writer = CheckpointWriter(run.workplace, checkpoint, store.outside, len(store.anatomy.blocks))
    # Beside what the result depends on: what could change its last bits.
    here = {
        "batch": run.plan.layout.batch,
        "device": str(store.device),
        "threads": torch.get_num_threads(),
        "ranks": run.ranks.count,
    }
    journal = Journal(run.workplace, writer, run.about | {"here": here})
    store.write_to(writer.write_block, journal.keep_pass)
    return journal


def _prune_blocks(run: _Run, journal: Journal | None) -> list[BlockResult]:
    store, emit = run.subject.store, run.emit
    results = run.ranks.from_first(lambda: _finished(run, journal))
    if len(results) == len(store.anatomy.blocks):
        return results
    with _timed(run.seconds, "capture"):
        inputs, streams = _streams(run)
    steps = [
        Pass(method, stream, calls=inputs.calls.apart())
        for method, stream in zip(run.plan.methods, streams, strict=True)
    ]
    if run.plan.layout.at_once and run.plan.calibration:
        ids = run.plan.calibration.ids
        at_once, stream = prepare_inputs(store, ids, len(ids), inputs.place)
        steps[0] = Pass(run.plan.methods[0], stream, at_once)
    streams.clear()  # those that no pass has are let go
    if results:
        emit(Phase("running finished blocks again", total=len(results)))
        last = len(steps) - 1
        replay_finished(
            store,
            steps,
            inputs,
            emit,
            len(results),
            lambda n, i: run.ranks.tensors_from_first(lambda: _kept(journal, n, i, last)),
        )
    emit(Phase("pruning", total=len(store.anatomy.blocks)))
    with _timed(run.seconds, "prune"):
        for result in prune_blocks(store, steps, run.plan.chosen, run.plan.target, inputs, emit, len(results)):
            if journal:
                journal.finish(result)
            emit(result)
            results.append(result)
    return results


def _finished(run: _Run, journal: Journal | None) -> list[BlockResult]:
    """The blocks that an earlier run has finished, in order."""
    if journal is None or run.workplace is None or not run.workplace.unfinished:
        if journal:
            journal.begin()
        return []
    results, blocks = journal.resume(len(run.subject.store.anatomy.blocks)), len(run.subject.store.anatomy.blocks)
    run.emit(Notice(f"resuming: {len(results)} of {blocks} blocks are finished"))
    return results


def _kept(journal: Journal | None, number: int, index: int, last: int) -> dict[str, Tensor]:
    """A finished block as the pass left it, by stored names."""
    assert journal is not None, "only a run that writes shard by shard can be resumed"
    return journal.writer.read_block(index) if number == last else journal.pass_block(number, index)


def _summary(run: _Run, results: Sequence[BlockResult]) -> PruningSummary:
    layers = tuple(layer for result in results for layer in result.layers)
    warnings = [*_short_of_tokens(layers)] if run.plan.calibration else [NO_ERRORS]
    for text in warnings:
        run.emit(Notice(text))
    return PruningSummary(
        layers, tuple(sub for result in results for sub in result.sub_blocks), run.seconds, tuple(warnings)
    )


def _short_of_tokens(layers: Sequence[LayerOutcome]) -> Iterator[str]:
    """The experts that were not pruned by what they saw themselves, with the number of tokens that they saw."""
    for key, value, what in (
        ("fallback", "all tokens", "were pruned by what all experts saw"),
        ("rebuilt", False, "were not rebuilt"),
    ):
        found = [
            f"{layer.name} ({layer.notes['tokens']})"
            for layer in layers
            if layer.notes.get(key) == value and "tokens" in layer.notes
        ]
        if found:
            yield (
                f"{len(found)} layers of experts {what}, for fewer than {FEW_TOKENS} tokens were sent there:"
                f" {', '.join(found)}"
            )


def _streams(run: _Run) -> tuple[Inputs, list[Stream | None]]:
    """One stream of hidden states for every pass that looks at data."""
    plan, store = run.plan, run.subject.store
    if plan.calibration is None:
        return Inputs.none(run.ranks), [None for _ in plan.methods]
    run.emit(Phase("embedding"))
    folder = run.ranks.from_first(lambda: run.workplace.path if run.workplace else None)
    folder = folder if folder and folder.is_dir() else None  # another machine may not see it
    place = Place(plan.layout.activations, store.device, folder)
    inputs, first = prepare_inputs(store, plan.calibration.ids, plan.layout.batch, place, run.ranks)
    errors_wanted = plan.methods[0].statistic is not None or len(plan.methods) == 1
    streams: list[Stream | None] = []
    for i, method in enumerate(plan.methods):
        looks = method.statistic is not None or (i == 0 and errors_wanted)
        streams.append(None if not looks else first if all(s is None for s in streams) else first.clone())
    return inputs, streams


def _begin(workplace: Workplace, subject: Subject, copies: int, emit: Emit) -> None:
    """Raises: OutputError if the place is taken or too small; ModelError if the model in memory can't be saved
    at all.
    """
    if subject.checkpoint:
        source = subject.checkpoint.directory
        beside = companions(source)
        need = subject.checkpoint.bytes * copies + sum(path.stat().st_size for path in beside)
        workplace.begin(need, [path.relative_to(source).as_posix() for path in beside])
        if names := too_large(source):
            emit(Notice(f"not copied, for no file of a model but its weights is as large: {', '.join(names)}"))
        return
    if not hasattr(subject.store.model, "save_pretrained"):
        raise ModelError(
            f"{subject.name} has no save_pretrained, so --save_model can't write it; leave save_model out and save"
            " result.model yourself"
        )
    workplace.begin(_bytes(subject.store.model))


def _stop(run: _Run, workplace: Workplace) -> None:
    """After an error: what can be resumed stays, the rest is removed."""
    finished = any(workplace.path.glob("journal-block-*")) or workplace.whole
    if run.subject.checkpoint and workplace.unfinished and finished:
        workplace.leave()
        run.emit(
            Notice(f"what is finished stays in {workplace.path}; the same command with --resume goes on from there")
        )
    else:
        workplace.abandon()


def _write(run: _Run, writer: CheckpointWriter | None, summary: PruningSummary) -> None:
    workplace, subject = run.workplace, run.subject
    assert workplace is not None
    if writer is not None:
        writer.finish()
    else:
        with writing_to(workplace.target):
            subject.store.model.save_pretrained(workplace.path)  # type: ignore[operator]
            with contextlib.suppress(DataError):  # without its tokenizer a model in memory is saved alone
                subject.load_tokenizer().save_pretrained(workplace.path)
    workplace.write(
        "README.md", model_card(run.about, summary, method_label(run.recipe), target_label(run.plan.target))
    )
    names = [name for name in workplace.names() if name != MANIFEST]
    workplace.write(MANIFEST, manifest(run.about, summary, workplace.shards(), names, delete=run.recipe.output.delete))
    workplace.publish()


def _put_in_place(run: _Run) -> PruningSummary:
    """The rest of a run that was stopped when all was made and nothing, or not everything, was in its place."""
    assert run.workplace is not None
    summary = _already_complete(run, run.workplace.path)
    run.workplace.publish()
    return summary


def _already_complete(run: _Run, directory: Path) -> PruningSummary:
    """The outcome of a run that was only interrupted afterwards, while its result was evaluated.

    Raises: OutputError if the result in ``directory`` is of another run.
    """
    found = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    wanted = json.loads(dump_json(run.about))
    if difference := first_difference({key: found.get(key) for key in wanted}, wanted):
        raise OutputError(
            f"--resume: {directory} holds the result of another run: {difference}; choose another directory, or"
            " --overwrite it"
        )
    run.emit(Notice(f"{directory} is complete already; going on with what comes after"))
    layers = tuple(LayerOutcome(**{k: v for k, v in layer.items() if k != "sparsity"}) for layer in found["layers"])
    return PruningSummary(
        layers, tuple(SubBlockOutcome(**sub) for sub in found["sub_blocks"]), run.seconds, tuple(found["warnings"])
    )


def _bytes(model: nn.Module) -> int:
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
