"""LLM-Barber's exchange: pruned weights of high score are grown, kept weights of low score are dropped (arXiv
2408.10631).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from autoprune.core.order_statistics import as_integers, below_zero, count_true, counting, lowest_at
from autoprune.core.sparsity import SemiStructured, Target


@dataclass(frozen=True)
class Exchange:
    """The new patterns of the layers compared together, and what changed in them."""

    keep: tuple[Bool[Tensor, "_ _"], ...]
    compared: tuple[int, ...]  # per layer: pairs that could be compared in its sets (block: the shared set's number)
    inverted: tuple[int, ...]  # per layer: pairs whose pruned score exceeds the kept one
    grown: tuple[int, ...]  # per layer: weights that came back
    dropped: tuple[int, ...]  # per layer: weights that went
    sets: tuple[int, ...]  # per layer: its sets that hold an inverted pair (block: the shared set, or none)


def exchange(
    scores: Sequence[Float[Tensor, "_ _"]],
    keep: Sequence[Bool[Tensor, "_ _"]],
    granularity: str,
    threshold: float,
    target: Target | None,
) -> Exchange:
    """Exchanges ``floor(threshold * n)`` of the n inverted pairs in every compared set of a sub-block's layers.

    The sets are: ``block`` all layers together, ``layer`` each layer, ``output1`` each row, ``input1`` each column.
    An N:M target stays intact: growth is chosen per row (``output1``), and every group drops as many as it gained.
    """
    if granularity == "block":
        return _exchange_together(scores, keep, threshold)
    parts = [_exchange_layer(s, k, granularity, threshold, target) for s, k in zip(scores, keep, strict=True)]
    return Exchange(*(tuple(column) for column in zip(*parts, strict=True)))


def exchange_sets(
    scores: Float[Tensor, "sets size"], keep: Bool[Tensor, "sets size"], threshold: float
) -> tuple[Bool[Tensor, "sets size"], Bool[Tensor, "sets size"], Int[Tensor, " sets"]]:
    """Which weights are grown and which dropped in every set (row), and each set's number of inverted pairs.

    With P the scores of pruned weights in descending and K those of kept weights in ascending order, n is the number
    of leading pairs with P_i > K_i, and e = floor(threshold * n) of each side are exchanged; ties by lower index. No
    score may be negative.
    """
    order = as_integers(scores)
    exchanged, inverted = _count_exchanged(order, keep, threshold)
    return _highest_of(order, ~keep, exchanged), _lowest_of(order, keep, exchanged), inverted


def _count_exchanged(
    order: Int[Tensor, "sets size"], keep: Bool[Tensor, "sets size"], threshold: float
) -> tuple[Tensor, Tensor]:
    inverted = count_inverted(order, keep)
    return (inverted.double() * threshold).floor().to(inverted.dtype), inverted


def count_inverted(scores: Real[Tensor, "sets size"], keep: Bool[Tensor, "sets size"]) -> Int[Tensor, " sets"]:
    """Number n of leading pairs with P_i > K_i in every set.

    It is the number of pruned weights among the |K| highest scores of the set, kept ones first among equals:
    that many kept weights lie below them.
    """
    kept = count_true(keep)
    cut = lowest_at(scores, (scores.shape[-1] + 1 - kept).clamp(max=scores.shape[-1]))
    above, tied = scores > cut, scores == cut
    room = (
        kept - count_true(above) - count_true(tied & keep)
    )  # places among the highest that pruned weights tied at the cut take
    return (count_true(above & ~keep) + room.clamp(min=0)) * (kept > 0)


def _highest_of(
    order: Int[Tensor, "sets size"], among: Bool[Tensor, "sets size"], counts: Int[Tensor, " sets"]
) -> Bool[Tensor, "sets size"]:
    """The ``counts`` highest of every set among some."""
    return _highest(below_zero(order, ~among), counts)


def _lowest_of(
    order: Int[Tensor, "sets size"], among: Bool[Tensor, "sets size"], counts: Int[Tensor, " sets"]
) -> Bool[Tensor, "sets size"]:
    """The ``counts`` lowest of every set among some: the highest when counted from the other end."""
    return _highest(below_zero(torch.iinfo(order.dtype).max - order, ~among), counts)


def _highest(scores: Int[Tensor, "sets size"], counts: Int[Tensor, " sets"]) -> Bool[Tensor, "sets size"]:
    """The ``counts`` highest scores of every set; among equals the lower index comes first."""
    if not bool(counts.any()):
        return torch.zeros_like(scores, dtype=torch.bool)
    cut = lowest_at(scores, (scores.shape[-1] + 1 - counts).clamp(max=scores.shape[-1]))
    found, tied = scores > cut, scores == cut
    room = (counts - count_true(found)).unsqueeze(-1)
    if scores.is_cuda or bool((count_true(tied) > room[:, 0]).any()):
        tied &= tied.cumsum(-1, dtype=counting(tied.shape[-1])) <= room
    return (found | tied) & (counts > 0).unsqueeze(-1)


def _exchange_together(scores: Sequence[Tensor], keep: Sequence[Tensor], threshold: float) -> Exchange:
    flat_keep = torch.cat([k.flatten() for k in keep]).unsqueeze(0)
    grown, dropped, inverted = exchange_sets(
        torch.cat([s.flatten() for s in scores]).unsqueeze(0), flat_keep, threshold
    )
    sizes = [k.numel() for k in keep]
    grown_parts, dropped_parts = grown[0].split(sizes), dropped[0].split(sizes)
    new = tuple((k | g.view_as(k)) & ~d.view_as(k) for k, g, d in zip(keep, grown_parts, dropped_parts, strict=True))
    survivors = int(count_true(flat_keep))
    pairs = min(survivors, flat_keep.numel() - survivors)
    return Exchange(
        new,
        (pairs,) * len(new),
        (int(inverted),) * len(new),
        tuple(int(count_true(g)) for g in grown_parts),
        tuple(int(count_true(d)) for d in dropped_parts),
        (min(int(inverted), 1),) * len(new),
    )


def _exchange_layer(
    scores: Tensor, keep: Tensor, granularity: str, threshold: float, target: Target | None
) -> tuple[Tensor, int, int, int, int, int]:
    shape = {"layer": (1, -1), "output1": keep.shape, "input1": keep.shape}[granularity]
    by_column = granularity == "input1"
    sets = scores.T.contiguous() if by_column else scores.reshape(shape)
    kept = keep.T.contiguous() if by_column else keep.reshape(shape)
    if isinstance(target, SemiStructured):
        order = as_integers(sets)
        exchanged, inverted = _count_exchanged(order, kept, threshold)
        grown, dropped = _exchange_in_groups(order, keep, _highest_of(order, ~kept, exchanged), target.m)
    else:
        grown, dropped, inverted = exchange_sets(sets, kept, threshold)
    new = (kept | grown) & ~dropped
    new = (new.T if by_column else new.reshape(keep.shape)).contiguous()
    survivors = count_true(kept)
    pairs = int(torch.minimum(survivors, kept.shape[-1] - survivors).sum())
    moved = int(count_true(grown).sum()), int(count_true(dropped).sum())
    return new, pairs, int(inverted.sum()), *moved, int(count_true(inverted > 0))


def _exchange_in_groups(order: Tensor, keep: Tensor, grown: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Every group of m that gained g weights drops the g lowest-scored of its previously kept ones.

    A group can't gain more than it has to give (1:4 with two chosen in one group): then only its highest-scored grow.
    """
    chosen, kept, order = (t.unflatten(1, (-1, m)).flatten(0, 1) for t in (grown, keep, order))
    gained = torch.minimum(count_true(chosen), count_true(kept))
    gaining = gained.nonzero()[:, 0]  # most groups gain nothing
    chosen, kept, order, gained = chosen[gaining], kept[gaining], order[gaining], gained[gaining]
    grows, drops = torch.zeros_like(keep), torch.zeros_like(keep)
    grows.view(-1, m)[gaining] = _highest_of(order, chosen, gained)
    drops.view(-1, m)[gaining] = _lowest_of(order, kept, gained)
    return grows, drops
