"""From scores to the keep pattern: exactly ``floor(ratio * n)`` weights go, lowest score first, ties by lower
index.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.core.order_statistics import count_true, counting, kth_lowest
from autoprune.core.sparsity import Counted, SemiStructured, Target

SMALL_GROUP = 16


def drop_count(ratio: float, size: int) -> int:
    """How many of ``size`` weights compared together become zero: ``floor(ratio * size)``."""
    return math.floor(
        Fraction(repr(float(ratio))) * size
    )  # 0.29 means 29/100: as a binary fraction it is a little less


def keep_highest(scores: Float[Tensor, "sets size"], drop: int) -> Bool[Tensor, "sets size"]:
    """In every set (row) the ``drop`` lowest scores become False; among equal scores the lower index goes first.

    Works by the value of the ``drop``-th lowest score: nothing is sorted.
    """
    if drop == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    cut = kth_lowest(scores, drop)
    keep = scores > cut
    surplus = keep.shape[-1] - drop - count_true(keep).unsqueeze(-1)  # ties that survive: the last ones of the set
    if scores.is_cuda or bool((surplus > 0).any()):  # to ask would keep a GPU waiting for longer than to do it
        tied = scores == cut
        from_the_end = tied.flip(-1).cumsum(-1, dtype=counting(tied.shape[-1])).flip(-1)
        keep |= tied & (from_the_end <= surplus)
    return keep


def keep_per_layer(scores: Float[Tensor, "out in"], ratio: float) -> Bool[Tensor, "out in"]:
    """Compares all weights of the layer with each other."""
    return keep_highest(scores.reshape(1, -1), drop_count(ratio, scores.numel())).view_as(scores)


def keep_per_row(scores: Float[Tensor, "out in"], ratio: float) -> Bool[Tensor, "out in"]:
    """Compares the weights of each output row with each other."""
    return keep_highest(scores, drop_count(ratio, scores.shape[1]))


def keep_n_m(scores: Float[Tensor, "out in"], pattern: SemiStructured) -> Bool[Tensor, "out in"]:
    """Keeps the ``n`` highest of every ``m`` consecutive scores of a row; ``in`` must be divisible by ``m``.

    A score's rank is counted by comparing every two members of a group: for small groups that is
    quicker than sorting, and it settles ties the same way everywhere.
    """
    m = pattern.m
    if m > SMALL_GROUP:
        return keep_highest(scores.reshape(-1, m), m - pattern.n).view_as(scores)
    members = scores.unflatten(1, (-1, m)).unbind(-1)
    # To begin with, as if all later members were lower.
    ranks = [
        torch.full(mine.shape, m - 1 - i, dtype=torch.int8, device=scores.device) for i, mine in enumerate(members)
    ]
    for i, mine in enumerate(members):
        for j in range(i + 1, m):
            lower = (mine <= members[j]).view(torch.int8)  # an equal score with a lower index counts as lower
            ranks[i] -= lower
            ranks[j] += lower
    keep = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    for rank, place in zip(ranks, keep.unflatten(1, (-1, m)).unbind(-1), strict=True):
        torch.ge(rank, m - pattern.n, out=place)
    return keep


def keep_for(scores: Float[Tensor, "out in"], target: Target, *, per_row: bool) -> Bool[Tensor, "out in"]:
    """The keep pattern for a target: N:M groups, or per row, or over the whole layer."""
    if isinstance(target, SemiStructured):
        return keep_n_m(scores, target)
    if isinstance(target, Counted):
        return keep_counted(scores, target, per_row=per_row)
    return keep_per_row(scores, target.ratio) if per_row else keep_per_layer(scores, target.ratio)


def keep_counted(scores: Float[Tensor, "out in"], target: Counted, *, per_row: bool) -> Bool[Tensor, "out in"]:
    """Exactly ``target.zeros`` go; per row, each of the first rows loses one more where the rows don't divide them."""
    if not per_row:
        return keep_highest(scores.reshape(1, -1), target.zeros).view_as(scores)
    each, more = divmod(target.zeros, scores.shape[0])
    return torch.cat([keep_highest(scores[:more], each + 1), keep_highest(scores[more:], each)])


def count_violations(keep: Bool[Tensor, "out in"], pattern: SemiStructured) -> int:
    """Number of groups of ``m`` that hold more than ``n`` survivors."""
    return int((count_true(keep.unflatten(1, (-1, pattern.m))) > pattern.n).sum())
