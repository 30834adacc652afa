"""A first pass's work on one block: observe → solve → assign, all input groups at once or one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from autoprune.core.problem import LayerSolution, Method
from autoprune.errors import NumericsError
from autoprune.events import Notice, Step
from autoprune.machine.allocator import kept_for_reuse
from autoprune.model.layers import Layer
from autoprune.model.observe import InputGroup, InputObserver, check_finite, settle_experts
from autoprune.model.sharing import merge_groups, observed_as, solved
from autoprune.model.stream import Stream
from autoprune.model.watch import Use, Watch
from autoprune.model.work import Inputs, Work


def prune_by_inputs(work: Work, method: Method, stream: Stream | None) -> None:
    """Observes all input groups of the block with its own weights, then solves and assigns every group."""
    groups = (
        _observe_inputs(work, method, stream)
        if stream is not None
        else [InputGroup([layer], None) for layer in work.layers]
    )

    def solve(index: int) -> list[LayerSolution]:
        return method.solve([work.problem(layer, groups[index].statistic) for layer in groups[index].layers])

    for group, solutions in zip(
        groups, solved(work.inputs.ranks, [group.layers for group in groups], solve), strict=True
    ):
        _assign(work, group, solutions)


@torch.no_grad()
def prune_in_sequence(work: Work, method: Method, stream: Stream, inputs: Inputs) -> None:
    """Input group by input group, each behind the pruned ones before it in the block; advances the stream on the way.

    All samples go through the block together, once, in the one micro-batch of ``inputs``: when a group's input arrives
    it is observed, and the group is pruned before its product is taken.
    """
    waiting = {layer.name: layers for layers in _input_groups(work) for layer in layers}
    pruned: list[Layer] = []

    def coming(uses: list[Use]) -> None:
        for use in uses:
            layers = waiting.get(use.layer.name)
            if layers is None:
                continue  # pruned together with the first layer of its group
            for layer in layers:
                del waiting[layer.name]
            pruned.extend(layers)
            group = InputGroup.empty(layers, method.statistic, use.x, inputs.samples * inputs.tokens)  # type: ignore[arg-type]
            group.update(use.x)
            check_finite([group], work.block.name)
            _assign(work, group, method.solve([work.problem(layer, group.statistic) for layer in layers]))

    with Watch(work.layers, coming=coming), kept_for_reuse():
        stream[0] = inputs.calls.of(0, work.block.index)(work.block.module, stream[0])
    work.emit(Step(work.block.index, work.blocks, "observe and advance", 1, 1))
    _require_seen(work, pruned)


@torch.no_grad()
def advance(work: Work, stream: Stream, dtype: torch.dtype | None = None) -> None:
    """The block's outputs with its present weights become the next block's inputs.

    ``dtype`` is what it runs in, if not the stream's, which stays as it is: the next block is to find the precision
    that it would have found.
    """
    for i in work.batches("advance"):
        given = stream[i]
        result = work.inputs.calls.of(i, work.block.index)(work.block.module, given.to(dtype or stream.dtype))
        stream[i] = result if dtype in (None, given.dtype) else result.to(given.dtype)


@torch.no_grad()
def _observe_inputs(work: Work, method: Method, stream: Stream) -> list[InputGroup]:
    inputs = work.inputs
    kind = observed_as(inputs.ranks, method.statistic)
    observer = InputObserver(work.layers, kind, inputs.all_samples * inputs.tokens, inputs.before * inputs.tokens)
    with observer:
        for i in work.batches("observe"):
            inputs.calls.of(i, work.block.index)(work.block.module, stream[i])
            observer.next_pass()
    groups = settle_experts(merge_groups(inputs.ranks, observer.groups, work.layers, method.statistic), work.layers)
    _require_seen(work, [layer for group in groups for layer in group.layers])
    check_finite(groups, work.block.name)
    return groups


def _input_groups(work: Work) -> list[list[Layer]]:
    """The layers of the block by the tensor that feeds them, seen on a few tokens."""
    probe = work.inputs.probe
    assert probe is not None
    with InputObserver(work.layers, None, 1) as observer:
        probe.run(work.block)
    return [group.layers for group in observer.groups]


def _require_seen(work: Work, seen: Sequence[Layer]) -> None:
    names = {layer.name for layer in seen}
    if unseen := [work.block.full_name(layer) for layer in work.layers if layer.name not in names]:
        raise NumericsError(
            f"{unseen[0]} saw no input while its block ran, so it can't be pruned by its inputs; leave it dense with"
            f" --ignore {unseen[0]!r}"
        )


def _assign(work: Work, group: InputGroup, solutions: Sequence[LayerSolution]) -> None:
    for layer, solution in zip(group.layers, solutions, strict=True):
        work.assign(layer, solution)
        error = group.sample.relative_error(work.dense[layer.name], layer.matrix) if group.sample else None
        work.record(layer, replace(solution, notes=group.notes | solution.notes), error)
        if solution.notes.get("attempts", 1) > 1:
            how = (
                f"damping {solution.notes['damping']:g}, {solution.notes['precision']}, attempt"
                f" {solution.notes['attempts']}"
            )
            work.emit(Notice(f"{solution.name}: the Hessian could only be factorised with {how}"))
