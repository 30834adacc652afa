"""Steps on the whole pruned model, behind the walk: both models are brought together, trained, and put back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from autoprune.events import BlockResult, Phase
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.experts import eager_experts
from autoprune.model.layers import Layer
from autoprune.model.stream import Place
from autoprune.model.training import is_vector
from autoprune.model.walk import Inputs
from autoprune.model.whole import ModelTraining, TwoModels
from autoprune.run.state import Run, timed
from autoprune.steps.whole import ModelStep
from autoprune.storage.applied import apply_solutions
from autoprune.storage.both import Values, both_models
from autoprune.storage.journal import Journal
from autoprune.storage.store import CheckpointStore


@dataclass(frozen=True)
class Finished:
    """What became of the whole model: for each step the loss on held-out samples before and after."""

    results: list[BlockResult]
    notes: dict[str, dict[str, float]]


def dense_values(run: Run) -> Values:
    """The dense parameters of a model in memory, taken before it is pruned: weights are let go, never overwritten.

    Empty where no step needs them, or they can be read again.
    """
    if not _steps(run) or isinstance(run.subject.store, CheckpointStore):
        return {}
    return _values(run.subject.store.anatomy.blocks)


def finish(run: Run, journal: Journal | None, dense: Values, results: Sequence[BlockResult]) -> Finished:
    """Runs the steps that work on the whole model. Nothing happens where there are none.

    What an earlier run has finished is taken from its journal. A run that was stopped in the midst of training begins
    the training again, and comes to the same bits.
    """
    steps, store = _steps(run), run.subject.store
    if not steps:
        return Finished(list(results), {})
    known = journal.finished() if journal else None
    if journal and known is not None:
        journal.put_finished()
        return _outcome(run, results, known)
    run.emit(Phase("bringing both models together"))
    models, notes = _both(run, journal, dense), dict[str, dict[str, float]]()
    assert run.plan.calibration is not None, "the step's needs name data"
    ids = run.plan.calibration.ids
    with timed(run.seconds, "whole"), eager_experts(store.model):
        for step in steps:
            inputs = replace(_inputs(ids, run.plan.layout.batch), held_out=step.needs.held_out)
            run.emit(Phase(step.title))
            training = ModelTraining(store, ids, inputs, models, step.compute_dtype, run.emit)
            try:
                best = step.fit(training)
            finally:
                training.restore()
            notes[step.name] = {"held_out_before": best.first, "held_out_after": best.loss}
            if best.improved:
                models = replace(models, pruned={**models.pruned, **_rounded(run, models.pruned, best.values)})
    _put_back(run, journal, models.pruned if _improved(notes) else None, notes)
    return _outcome(run, results, notes)


def _improved(notes: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether any step made anything better; else the walk's result stays as it is, bit for bit."""
    return any(loss["held_out_after"] < loss["held_out_before"] for loss in notes.values())


def _outcome(run: Run, results: Sequence[BlockResult], notes: dict[str, dict[str, float]]) -> Finished:
    """Layer errors were those of the walk; what was trained beside the layers is noted."""
    if not _improved(notes):
        return Finished(list(results), notes)
    found = list[BlockResult]()
    for result in results:
        layers = tuple(replace(layer, error=None) for layer in result.layers)
        vectors = [f"{result.name}.{name}" for name in _vectors(run.subject.store.anatomy.blocks[result.block], run)]
        found.append(replace(result, layers=layers, trained=tuple(dict.fromkeys([*result.trained, *vectors]))))
    return Finished(found, notes)


def _steps(run: Run) -> list[ModelStep]:
    return [step for step in run.plan.steps if isinstance(step, ModelStep)]


def _inputs(ids: Tensor, batch: int) -> Inputs:
    return replace(
        Inputs.none(), samples=len(ids), all_samples=len(ids), tokens=ids.shape[1], batch=batch, place=Place()
    )


def _both(run: Run, journal: Journal | None, dense: Values) -> TwoModels:
    """Both models' blocks; the store's model holds the pruned one's afterwards."""
    store = run.subject.store
    if isinstance(store, CheckpointStore):
        dense, pruned = both_models(store, journal.writer.read_block if journal else None)
    else:
        pruned = _values(store.anatomy.blocks)
    layers, still, left = set[str](), set[str](), list[tuple[str, Layer]]()
    for block in store.anatomy.blocks:
        if not run.plan.chosen[block.index]:
            still |= {f"{block.name}.{name}" for name, _ in block.module.named_parameters()}
        layers |= {f"{block.name}.{name}" for name in _pruned(block, run)}
        chosen = {layer.name for layer in run.plan.chosen[block.index]}
        left += [(f"{block.name}.{la.parameter_name}", la) for la in block.layers if la.name not in chosen]
    return TwoModels(dense, pruned, layers, left, still)


def _values(blocks: Iterable[BlockAnatomy]) -> Values:
    return {f"{b.name}.{name}": p.data for b in blocks for name, p in b.module.named_parameters()}


def _rounded(run: Run, before: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Values:
    """As they will be stored, and then as the model runs with them."""
    store, found = run.subject.store, Values()
    for block in store.anatomy.blocks:
        stored = store.stored_as(block)
        for name, _ in block.module.named_parameters():
            full = f"{block.name}.{name}"
            if full in values:
                runs = before[full].dtype
                found[full] = values[full].to(stored.get(name, runs)).to(runs)
    return found


def _put_back(
    run: Run, journal: Journal | None, values: Mapping[str, Tensor] | None, notes: dict[str, dict[str, float]]
) -> None:
    """Into the model, and into the shards of a run that writes: all of them, or none if it is stopped before.

    None: nothing has changed, and the model has its own values again.
    """
    store = run.subject.store
    for block in store.anatomy.blocks if values is not None else ():
        assert values is not None
        own = {name: values[f"{block.name}.{name}"] for name, _ in block.module.named_parameters()}
        if journal and isinstance(store, CheckpointStore):
            changed = {name: own[name] for name in (*_pruned(block, run), *_vectors(block, run))}
            stored = journal.writer.read_block(block.index)
            journal.keep_finished(block.index, apply_solutions(store.skeleton, block, stored, {}, changed))
            continue
        for name, p in block.module.named_parameters():
            p.data = own[name]
    if journal and isinstance(store, CheckpointStore):
        store.release_all()
        journal.mark_finished(notes)
        journal.put_finished()


def _pruned(block: BlockAnatomy, run: Run) -> list[str]:
    """Names in the block of the parameters that hold layers which were pruned."""
    return list(dict.fromkeys(layer.parameter_name for layer in run.plan.chosen[block.index]))


def _vectors(block: BlockAnatomy, run: Run) -> list[str]:
    """Names in the block of all else that was trained: nothing where no layer was to be pruned."""
    layers = _pruned(block, run)
    named = block.module.named_parameters() if layers else ()
    return [name for name, p in named if is_vector(name, p) and name not in layers]
