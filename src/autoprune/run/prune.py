"""The pruning of a plan, from the first hidden state to the published checkpoint; goes on where an earlier run
stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoprune.errors import RecipeError
from autoprune.events import BlockResult, Emit, Notice, Phase
from autoprune.machine.ranks import Ranks
from autoprune.model.observe import FEW_TOKENS
from autoprune.model.pruning import (
    Streams,
    Targets,
    open_streams,
    prune_blocks,
    replay_finished,
    send_at_once,
    split_passes,
)
from autoprune.model.stream import Place, Stream
from autoprune.model.survey import survey
from autoprune.model.walk import Inputs, prepare_inputs
from autoprune.recipe.recipe import Recipe
from autoprune.results.codec import first_difference
from autoprune.results.outcome import LayerOutcome
from autoprune.results.types import PruningSummary
from autoprune.run.check import check_model, check_precisions, check_values
from autoprune.run.finish import Finished, dense_values, finish
from autoprune.run.plan import Plan
from autoprune.run.state import Run, timed
from autoprune.run.write import already_complete, begin, put_in_place, stop, write
from autoprune.steps.whole import ModelStep
from autoprune.storage.identity import described_by
from autoprune.storage.journal import Journal
from autoprune.storage.manifest import MANIFEST, provenance
from autoprune.storage.pruned import GivenPattern
from autoprune.storage.result import Workplace
from autoprune.storage.shards import CheckpointWriter
from autoprune.storage.store import CheckpointStore
from autoprune.storage.values import ValueCheck

NO_ERRORS = "no calibration data was read, so layer errors were not measured (--layer_errors measures them)"


def prune_and_write(
    recipe: Recipe, plan: Plan, directory: Path | None, emit: Emit, checked: Callable[[Mapping[str, Any]], None]
) -> PruningSummary:
    """Prunes; the checkpoint appears in ``directory`` when it is whole. Of several ranks, the first one writes.

    ``checked`` is called with all that the result depends on, when the model is checked and nothing is pruned yet.
    After an error a run that has finished a block stays beside ``directory``, to be resumed; a shorter one is removed.
    """
    output, ranks = recipe.output, plan.ranks
    workplace = (
        Workplace(directory, overwrite=output.overwrite, resume=output.resume) if directory and ranks.first else None
    )
    run = Run(recipe, plan, emit, workplace)
    if workplace:
        workplace.tidy()
    complete = ranks.from_first(
        lambda: directory is not None and output.resume and not output.overwrite and (directory / MANIFEST).is_file()
    )
    if workplace and not complete:
        looking = sum(any(step.needs.samples for step in group) for group in split_passes(plan.steps))
        whole = any(isinstance(step, ModelStep) for step in plan.steps)  # its blocks lie beside the walk's
        begin(
            workplace, run.subject, max(1, looking) + whole, emit
        )  # what each but the last of them leaves is kept until the end
    try:
        with timed(run.seconds, "check"):
            run.about = _about(run, complete=complete)
            _require_same(ranks, run.about)
        checked(run.about)
        if directory and complete:
            return ranks.from_first(lambda: already_complete(run, directory))
        if ranks.from_first(lambda: workplace is not None and plan.subject.checkpoint is not None and workplace.whole):
            return ranks.from_first(lambda: put_in_place(run))
        journal, dense = _journal(run), dense_values(run)
        summary = _summary(run, finish(run, journal, dense, _prune_blocks(run, journal)))
        if workplace:
            emit(Phase("writing"))
            write(run, journal.writer if journal else None, summary)
        return summary
    except BaseException:
        if workplace and not complete:
            stop(run, workplace)
        raise


def _about(run: Run, *, complete: bool) -> dict[str, Any]:
    """What the run depends on; the model is checked on the way, and replayed unless there is nothing left to prune."""
    subject, calibration = run.subject, run.plan.calibration
    fingerprint = (
        check_model(subject, calibration.ids, run.emit)
        if calibration and not complete
        else check_values(subject, run.emit)
    )
    if calibration and not complete:
        check_precisions(subject, run.plan.steps, calibration.ids)
    model: dict[str, Any] = {
        "name": subject.name,
        "local": Path(subject.name).exists() or subject.name == "demo",
        "fingerprint": fingerprint,
    }
    if subject.checkpoint:
        model |= described_by(subject.checkpoint.directory, subject.store.model)
    if subject.checkpoint and subject.checkpoint.note:
        model["weights"] = subject.checkpoint.note
    if isinstance(subject.store, CheckpointStore) and (alone := subject.store.recorded_alone):
        model["left_alone"] = list(alone)
    first = run.plan.steps[0]
    if isinstance(first, GivenPattern):
        model["pruned"] = ValueCheck(first.pruned.skeleton.checkpoint).finish()
    return provenance(run.recipe, model, calibration.provenance if calibration else None)


def _require_same(ranks: Ranks, about: dict[str, Any]) -> None:
    """Raises: RecipeError, on all ranks, if the model, versions or options of one are not those of rank 0."""
    first, *others = ranks.all_gather(about)
    for rank, other in enumerate(others, start=1):
        if difference := first_difference(first, other):
            raise RecipeError(
                f"rank {rank} does not do what rank 0 does (rank 0's value first): {difference}; "
                "give all machines the same command, model and versions"
            )


def _journal(run: Run) -> Journal | None:
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
    journal = Journal(run.workplace, run.about | {"here": here}, writer)
    store.write_to(writer.write_block, journal.keep_pass)
    return journal


def _prune_blocks(run: Run, journal: Journal | None) -> list[BlockResult]:
    store, emit = run.subject.store, run.emit
    results = run.ranks.from_first(lambda: _finished(run, journal))
    if len(results) == len(store.anatomy.blocks):
        if known := run.ranks.from_first(lambda: journal.survey() if journal else None):
            run.surveys = known[1]
        return results
    with timed(run.seconds, "capture"):
        inputs, first = _inputs(run)
    targets = _surveyed(run, journal, inputs, first)
    streams = _streams(run, inputs, first)
    if results:
        emit(Phase("running finished blocks again", total=len(results)))
        last = len(streams.passes) - 1

        def stored(number: int, index: int) -> dict[str, Tensor]:
            return run.ranks.tensors_from_first(lambda: _kept(journal, number, index, last))

        replay_finished(store, streams, inputs, emit, len(results), stored)
    emit(Phase("pruning", total=len(store.anatomy.blocks)))
    with timed(run.seconds, "prune"):
        for result in prune_blocks(store, streams, run.plan.chosen, targets, inputs, emit, len(results)):
            if journal:
                journal.finish(result)
            emit(result)
            results.append(result)
    return results


def _finished(run: Run, journal: Journal | None) -> list[BlockResult]:
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


def _summary(run: Run, found: Finished) -> PruningSummary:
    results = found.results
    layers = tuple(layer for result in results for layer in result.layers)
    sub_blocks = tuple(sub for result in results for sub in result.sub_blocks)
    warnings = [*_short_of_tokens(layers)] if run.plan.calibration else [NO_ERRORS]
    warnings += [text for step in run.plan.steps for text in step.remarks(layers, sub_blocks)]
    for text in warnings:
        run.emit(Notice(text))
    trained = tuple(name for result in results for name in result.trained)
    return PruningSummary(layers, sub_blocks, run.seconds, tuple(warnings), run.surveys, trained, found.notes)


def _inputs(run: Run) -> tuple[Inputs, Stream | None]:
    """How the blocks are called, and block 0's input; none where no step looks at data."""
    plan, store = run.plan, run.subject.store
    if plan.calibration is None:
        return Inputs.none(run.ranks), None
    run.emit(Phase("embedding"))
    folder = run.ranks.from_first(lambda: run.workplace.path if run.workplace else None)
    folder = folder if folder and folder.is_dir() else None  # another machine may not see it
    place = Place(plan.layout.activations, store.device, folder)
    return prepare_inputs(store, plan.calibration.ids, plan.layout.batch, place, run.ranks)


def _streams(run: Run, inputs: Inputs, first: Stream | None) -> Streams:
    """The hidden states of every pass that looks at data."""
    plan, passes = run.plan, split_passes(run.plan.steps)
    errors = any(step.needs.samples for step in passes[0]) or len(passes) == 1
    streams = open_streams(plan.steps, inputs, first, errors=errors)
    if plan.layout.at_once and plan.calibration:
        send_at_once(run.subject.store, streams, plan.calibration.ids, inputs.place)
    return streams


def _surveyed(run: Run, journal: Journal | None, inputs: Inputs, first: Stream | None) -> Targets:
    """The layers' targets as the steps' surveys settle them; what an interrupted run found is not sought again."""
    plan = run.plan
    if not any(step.needs.survey for step in plan.steps):
        return plan.targets
    known = run.ranks.from_first(lambda: journal.survey() if journal else None)
    if known is None:
        with timed(run.seconds, "survey"):
            ids = plan.calibration.ids if plan.calibration else None
            known = survey(
                plan.steps, run.subject.store, inputs, first, plan.chosen, plan.targets, plan.target, ids, run.emit
            )
        if journal:
            journal.keep_survey(*known)
    targets, run.surveys = known
    return targets


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
