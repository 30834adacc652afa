"""Steps on the whole pruned model, behind the walk: both models are brought together, trained, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoprune.events import BlockResult, Phase
from autoprune.run.state import Run, timed
from autoprune.run.whole import Losses, Whole, block_values, improved
from autoprune.steps.whole import ModelStep
from autoprune.storage.both import Values, both_models
from autoprune.storage.journal import Journal
from autoprune.storage.store import CheckpointStore


@dataclass(frozen=True)
class Finished:
    """What became of the whole model: for each step the loss on held-out samples before and after."""

    results: list[BlockResult]
    notes: Losses


def dense_values(run: Run) -> Values:
    """The dense parameters of a model in memory, taken before it is pruned: weights are let go, never overwritten.

    Empty where no step needs them, or they can be read again.
    """
    if not _steps(run) or isinstance(run.subject.store, CheckpointStore):
        return {}
    return block_values(run.subject.store)


def finish(run: Run, journal: Journal | None, dense: Values, results: Sequence[BlockResult]) -> Finished:
    """Runs the steps that work on the whole model. Nothing happens where there are none.

    What an earlier run has finished is taken from its journal. A run that was stopped in the midst of training begins
    the training again, and comes to the same bits.
    """
    steps, store = _steps(run), run.subject.store
    if not steps:
        return Finished(list(results), {})
    assert run.plan.calibration is not None, "the step's needs name data"
    whole = Whole(store, run.plan.chosen, run.plan.calibration.ids, run.plan.layout.batch, run.emit)
    known = journal.finished() if journal else None
    if journal and known is not None:
        journal.put_finished()
        return _outcome(whole, results, known)
    run.emit(Phase("bringing both models together"))
    if isinstance(store, CheckpointStore):
        dense, pruned = both_models(store, journal.writer.read_block if journal else None)
    else:
        pruned = block_values(store)
    with timed(run.seconds, "whole"):
        values, losses = whole.train(steps, dense, pruned)
    _put_back(whole, journal, values, losses)
    return _outcome(whole, results, losses)


def _outcome(whole: Whole, results: Sequence[BlockResult], losses: Losses) -> Finished:
    """Layer errors were those of the walk; what was trained beside the layers is noted."""
    if not improved(losses):
        return Finished(list(results), losses)
    found = list[BlockResult]()
    for result in results:
        layers = tuple(replace(layer, error=None) for layer in result.layers)
        vectors = [f"{result.name}.{name}" for name in whole.vectors(whole.store.anatomy.blocks[result.block])]
        found.append(replace(result, layers=layers, trained=tuple(dict.fromkeys([*result.trained, *vectors]))))
    return Finished(found, losses)


def _steps(run: Run) -> list[ModelStep]:
    return [step for step in run.plan.steps if isinstance(step, ModelStep)]


def _put_back(whole: Whole, journal: Journal | None, values: Values | None, losses: Losses) -> None:
    """Into the model, and into the shards of a run that writes: all of them, or none if it is stopped before.

    None: nothing has changed, and the model has its own values again.
    """
    store = whole.store
    if journal and isinstance(store, CheckpointStore):
        if values is not None:
            whole.keep(journal, values)
        store.release_all()
        journal.mark_finished(losses)
        journal.put_finished()
    elif values is not None:
        for block in store.anatomy.blocks:
            for name, p in block.module.named_parameters():
                p.data = values[f"{block.name}.{name}"]
