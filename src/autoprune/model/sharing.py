"""What ranks tell each other about a block: statistics are brought together, solving is shared out, solutions are
handed round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.statistics import GradientEnergy, InputNorm
from autoprune.machine.ranks import Ranks
from autoprune.model.layers import Layer
from autoprune.model.observe import InputGroup, InputSample, InputStatistic, Kind
from autoprune.steps.base import Solve


@dataclass
class KeptNorm(InputNorm):
    """Keeps what every update adds, so that all ranks' sums are added in the order in which one process adds them."""

    updates: list[Float[Tensor, " in"]] = field(default_factory=list)

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        """Keeps the sums of squares of a batch of tokens."""
        part = InputNorm.empty(x.shape[-1], x.device)
        part.update(x)
        self.updates.append(part.squares)
        self.tokens += part.tokens


def share(batches: int, ranks: Ranks) -> range:
    """This rank's micro-batches: whole ones, as one process would run them, and neighbours, so that their order can be
    kept.
    """
    return range(batches * ranks.rank // ranks.count, batches * (ranks.rank + 1) // ranks.count)


def observed_as(ranks: Ranks, kinds: Sequence[Kind]) -> list[Kind]:
    """The kinds of statistics that a rank fills."""
    return [KeptNorm if kind is InputNorm and ranks.count > 1 else kind for kind in kinds]


def merge_groups(
    ranks: Ranks, groups: list[InputGroup], layers: Sequence[Layer], kinds: Sequence[Kind]
) -> list[InputGroup]:
    """The input groups of all ranks with what all of them saw; ``kinds`` are the statistics that are wanted.

    A group may be missing on a rank: an expert to which none of its tokens went.
    """
    if ranks.count == 1:
        return groups
    by_layer = {layer.name: layer for layer in layers}
    summaries = ranks.all_gather([_summary(group) for group in groups])
    united = _united(summaries)
    return [_merged(ranks, [by_layer[name] for name in names], groups, summaries, kinds) for names in united]


@dataclass(frozen=True)
class _Summary:
    """What a rank says of one of its groups."""

    names: tuple[str, ...]
    seen: int
    rows: int
    updates: int
    stride: int


def _summary(group: InputGroup) -> _Summary:
    sample = group.sample
    assert sample is not None
    kept = group.statistics.get(KeptNorm)
    updates = len(kept.updates) if isinstance(kept, KeptNorm) else 0
    names = tuple(layer.name for layer in group.layers)
    return _Summary(names, sample.seen, sum(map(len, sample.parts)), updates, sample.stride)


def _united(summaries: Sequence[Sequence[_Summary]]) -> list[list[str]]:
    """Names of layers by group; a layer belongs where the first rank that saw it has put it."""
    united: list[list[str]] = []
    place: dict[str, list[str]] = {}
    for groups in summaries:
        for group in groups:
            known = next((place[name] for name in group.names if name in place), None)
            if known is None:
                known = []
                united.append(known)
            for name in group.names:
                if name not in place:
                    place[name] = known
                    known.append(name)
    return united


def _merged(
    ranks: Ranks,
    layers: list[Layer],
    groups: Sequence[InputGroup],
    summaries: Sequence[Sequence[_Summary]],
    kinds: Sequence[Kind],
) -> InputGroup:
    leader = layers[0]
    of_rank = [next((group for group in groups if leader.name in group.names), None) for groups in summaries]
    mine = next((group for group in groups if leader in group.layers), None)
    device, width = leader.matrix.device, leader.shape[1]
    rows = [group.rows if group else 0 for group in of_rank]
    sample = _rows(ranks, mine.sample.parts if mine and mine.sample else [], rows, width, device)
    seen = sum(group.seen for group in of_rank if group)
    stride = next(group.stride for group in of_rank if group)
    totals: dict[Kind, InputStatistic] = {}
    for kind in kinds:
        if kind is InputNorm:  # in the order in which one process would add them
            kept = mine.statistics[KeptNorm] if mine else None
            updates = [part[None] for part in kept.updates] if isinstance(kept, KeptNorm) else []
            total = InputNorm.empty(width, device)
            for row in _rows(ranks, updates, [group.updates if group else 0 for group in of_rank], width, device):
                total.squares += row
            total.tokens = seen
            totals[kind] = total
        else:
            totals[kind] = mine.statistics[kind] if mine else kind.empty(width, device)
            _sum_up(ranks, totals[kind])
    return InputGroup(layers, InputSample(stride, seen, [sample]), totals)


def _rows(ranks: Ranks, parts: Sequence[Tensor], counts: Sequence[int], width: int, device: torch.device) -> Tensor:
    return ranks.rows(torch.cat([torch.empty(0, width, device=device), *parts]), counts)


def _sum_up(ranks: Ranks, statistic: InputStatistic) -> None:
    """Statistics are sums: of any of them, each part is the sum of that part over the ranks."""
    for part in dataclasses.fields(statistic):
        value = getattr(statistic, part.name)
        if isinstance(value, Tensor):
            ranks.all_reduce(value)
        else:
            setattr(statistic, part.name, sum(ranks.all_gather(value)))


def merge_gradients(
    ranks: Ranks,
    layers: Sequence[Layer],
    energies: Mapping[str, GradientEnergy],
    samples: Mapping[str, InputSample],
    loss: Tensor,
) -> None:
    """Makes each layer's energy and sample, and the loss, those of all ranks, in place."""
    if ranks.count == 1:
        return
    ranks.all_reduce(loss, *(energies[layer.name].squares for layer in layers))
    summaries = ranks.all_gather(
        [(samples[layer.name].seen, sum(map(len, samples[layer.name].parts))) for layer in layers]
    )
    for i, layer in enumerate(layers):
        sample = samples[layer.name]
        sample.parts = [
            _rows(ranks, sample.parts, [rank[i][1] for rank in summaries], layer.shape[1], layer.matrix.device)
        ]
        sample.seen = sum(rank[i][0] for rank in summaries)


def solved(
    ranks: Ranks,
    units: Sequence[Sequence[Layer]],
    problems: Callable[[int], list[LayerProblem]],
    solve: Solve,
) -> Iterator[list[LayerSolution]]:
    """The solutions of all units, in their order; a unit is what has to be solved together, ``problems(i)`` makes the
    problems of unit i.

    Alone, each is solved when it is asked for. Several ranks solve a part of them each, and hand them round.
    Raises: TypeError if a step does not answer every problem, in its order.
    """
    if ranks.count == 1:
        yield from (_answers(solve, problems(i)) for i in range(len(units)))
        return
    owners = shared_out(ranks, [sum(layer.count * layer.shape[1] for layer in unit) for unit in units])
    mine = {i: _answers(solve, problems(i)) for i, owner in enumerate(owners) if owner == ranks.rank}
    heads: dict[int, list[_Head]] = {}
    for part in ranks.all_gather(
        {i: [_without_tensors(solution) for solution in solutions] for i, solutions in mine.items()}
    ):
        heads |= part
    for i, owner in enumerate(owners):
        given: Sequence[LayerSolution | None] = mine.pop(i, [None] * len(heads[i]))
        yield [
            _received(ranks, owner, layer, head, own)
            for layer, head, own in zip(units[i], heads[i], given, strict=True)
        ]


def shared_out(ranks: Ranks, costs: Sequence[int]) -> list[int]:
    """The rank that solves each unit: the dearest first, each to the rank that has least to do so far."""
    load = [0] * ranks.count
    owners = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = min(range(ranks.count), key=lambda rank: load[rank])
        load[owners[i]] += costs[i]
    return owners


@dataclass(frozen=True)
class _Head:
    """A solution without its tensors."""

    name: str
    notes: dict[str, Any]
    dtype: torch.dtype | None  # of the new weights; None if there are none


def _without_tensors(solution: LayerSolution) -> _Head:
    return _Head(solution.name, solution.notes, None if solution.weight is None else solution.weight.dtype)


def _received(ranks: Ranks, owner: int, layer: Layer, head: _Head, own: LayerSolution | None) -> LayerSolution:
    keep = ranks.broadcast(owner, own.keep if own else None, layer.matrix, torch.bool)
    weight = ranks.broadcast(owner, own.weight if own else None, layer.matrix, head.dtype) if head.dtype else None
    return LayerSolution(head.name, keep, weight, head.notes)


def _answers(solve: Solve, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
    solutions = list(solve(problems))
    if [s.name for s in solutions] != [p.name for p in problems]:
        answered = ", ".join(s.name for s in solutions) or "nothing"
        raise TypeError(
            f"a step must solve every problem, in order: it was given {', '.join(p.name for p in problems)} and"
            f" answered {answered}"
        )
    return solutions
