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

from autoprune.core.problem import LayerSolution
from autoprune.core.statistics import GradientEnergy, InputNorm
from autoprune.machine.ranks import Ranks
from autoprune.model.layers import Layer
from autoprune.model.observe import InputGroup, InputSample


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


def observed_as(ranks: Ranks, statistic: Any) -> Any:
    """The kind of statistic that a rank fills."""
    return KeptNorm if statistic is InputNorm and ranks.count > 1 else statistic


def merge_groups(ranks: Ranks, groups: list[InputGroup], layers: Sequence[Layer], statistic: Any) -> list[InputGroup]:
    """The input groups of all ranks with what all of them saw; ``statistic`` is the kind that the method needs.

    A group may be missing on a rank: an expert to which none of its tokens went.
    """
    if ranks.count == 1:
        return groups
    by_layer = {layer.name: layer for layer in layers}
    told = ranks.gathered([_told(group) for group in groups])
    return [_merged(ranks, [by_layer[name] for name in names], groups, told, statistic) for names in _united(told)]


@dataclass(frozen=True)
class _Told:
    """What a rank says of one of its groups."""

    names: tuple[str, ...]
    seen: int
    rows: int
    updates: int
    stride: int


def _told(group: InputGroup) -> _Told:
    sample = group.sample
    assert sample is not None
    updates = group.statistic.updates if isinstance(group.statistic, KeptNorm) else []
    return _Told(
        tuple(layer.name for layer in group.layers),
        sample.seen,
        sum(map(len, sample.parts)),
        len(updates),
        sample.stride,
    )


def _united(told: Sequence[Sequence[_Told]]) -> list[list[str]]:
    """Names of layers by group; a layer belongs where the first rank that saw it has put it."""
    united: list[list[str]] = []
    place: dict[str, list[str]] = {}
    for groups in told:
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
    ranks: Ranks, layers: list[Layer], groups: Sequence[InputGroup], told: Sequence[Sequence[_Told]], statistic: Any
) -> InputGroup:
    leader = layers[0]
    of_rank = [next((group for group in groups if leader.name in group.names), None) for groups in told]
    mine = next((group for group in groups if leader in group.layers), None)
    device, width = leader.matrix.device, leader.shape[1]
    sample = _rows(
        ranks,
        mine.sample.parts if mine and mine.sample else [],
        [group.rows if group else 0 for group in of_rank],
        width,
        device,
    )
    seen, stride = sum(group.seen for group in of_rank if group), next(group.stride for group in of_rank if group)
    total: Any = None
    if statistic is InputNorm:
        updates = (
            [part[None] for part in mine.statistic.updates] if mine and isinstance(mine.statistic, KeptNorm) else []
        )
        total = InputNorm.empty(width, device)
        for row in _rows(ranks, updates, [group.updates if group else 0 for group in of_rank], width, device):
            total.squares += row
        total.tokens = seen
    elif statistic is not None:
        total = mine.statistic if mine else statistic.empty(width, device)
        _sum_up(ranks, total)
    return InputGroup(layers, InputSample(stride, seen, [sample]), total)


def _rows(ranks: Ranks, parts: Sequence[Tensor], counts: Sequence[int], width: int, device: torch.device) -> Tensor:
    return ranks.rows(torch.cat([torch.empty(0, width, device=device), *parts]), counts)


def _sum_up(ranks: Ranks, statistic: Any) -> None:
    """Statistics are sums: of any of them, each part is the sum of that part over the ranks."""
    for part in dataclasses.fields(statistic):
        value = getattr(statistic, part.name)
        if isinstance(value, Tensor):
            ranks.sum_(value)
        else:
            setattr(statistic, part.name, sum(ranks.gathered(value)))


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
    ranks.sum_(loss, *(energies[layer.name].squares for layer in layers))
    told = ranks.gathered([(samples[layer.name].seen, sum(map(len, samples[layer.name].parts))) for layer in layers])
    for i, layer in enumerate(layers):
        sample = samples[layer.name]
        sample.parts = [_rows(ranks, sample.parts, [rank[i][1] for rank in told], layer.shape[1], layer.matrix.device)]
        sample.seen = sum(rank[i][0] for rank in told)


def solved(
    ranks: Ranks, units: Sequence[Sequence[Layer]], solve: Callable[[int], list[LayerSolution]]
) -> Iterator[list[LayerSolution]]:
    """The solutions of all units, in their order; a unit is what has to be solved together, ``solve(i)`` solves unit
    i.

    Alone, each is solved when it is asked for. Several ranks solve a part of them each, and hand them round.
    """
    if ranks.count == 1:
        yield from (solve(i) for i in range(len(units)))
        return
    owners = shared_out(ranks, [sum(layer.count * layer.shape[1] for layer in unit) for unit in units])
    mine = {i: solve(i) for i, owner in enumerate(owners) if owner == ranks.rank}
    heads: dict[int, list[_Head]] = {}
    for part in ranks.gathered(
        {i: [_without_tensors(solution) for solution in solutions] for i, solutions in mine.items()}
    ):
        heads |= part
    for i, owner in enumerate(owners):
        given: Sequence[LayerSolution | None] = mine.pop(i, [None] * len(heads[i]))
        yield [
            _handed(ranks, owner, layer, head, own) for layer, head, own in zip(units[i], heads[i], given, strict=True)
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


def _handed(ranks: Ranks, owner: int, layer: Layer, head: _Head, own: LayerSolution | None) -> LayerSolution:
    keep = ranks.handed(owner, own.keep if own else None, layer.matrix, torch.bool)
    weight = ranks.handed(owner, own.weight if own else None, layer.matrix, head.dtype) if head.dtype else None
    return LayerSolution(head.name, keep, weight, head.notes)
