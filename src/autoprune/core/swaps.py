"""Exchanges of a pruned for a kept weight that lower a row's output error (SparseSwaps, arXiv 2512.10922).

Exact on the Gram: with p the pruned weights of a row and c = G p, its error is p^T G p. To grow i and drop j changes
it by ``a_i + b_j - 2 w_i w_j G_ij``, where ``a_i = w_i^2 G_ii - 2 w_i c_i`` and ``b_j = w_j^2 G_jj + 2 w_j c_j``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from autoprune.core.order_statistics import zeroed
from autoprune.core.sparsity import SemiStructured, Target
from autoprune.errors import NumericsError

ENOUGH = 1e-6  # a swap must lower the row's error by this share of it: less is rounding
REFRESH = 50  # swaps after which c is computed anew, for rounding adds up in it
ELEMENTS = 2**20  # numbers in the largest temporary


@dataclass(frozen=True)
class Swapped:
    """The new pattern, and for every row its number of swaps and its error ``sum_x ((w - w') x)^2``."""

    keep: Bool[Tensor, "out in"]
    swaps: Int[Tensor, " out"]
    error_before: Float[Tensor, " out"]
    error_after: Float[Tensor, " out"]


def swap(
    weight: Float[Tensor, "out in"],
    keep: Bool[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    target: Target,
    *,
    limit: int,
    candidates: int = 32,
    protect: Bool[Tensor, "out in"] | None = None,
) -> Swapped:
    """Swaps in every row, best first, until no pair lowers its error, or ``limit`` times.

    ``weight`` holds the values of pruned weights too; all weights stay as they are. An N:M target allows pairs inside
    a group only, of which the best is taken. Otherwise it is sought among the ``candidates`` pruned weights of lowest
    a and kept ones of lowest b, and among all where none of these lowers the error: each swap is nearly the best there
    is (with ``candidates`` of at least ``in``, the best), and none is left in the end. What ``protect`` marks is never
    dropped. No row's number of survivors changes, and no row's error rises.
    Raises: NumericsError if the errors are not finite.
    """
    features = weight.shape[1]
    size = features * target.m if isinstance(target, SemiStructured) else max(features, min(candidates, features) ** 2)
    parts = []
    for start in range(0, max(len(weight), 1), step := max(ELEMENTS // size, 1)):
        here = slice(start, start + step)
        free = None if protect is None else ~protect[here]
        parts.append(_settle(weight[here], keep[here], free, gram, target, limit, candidates))
    return Swapped(*(torch.cat(column) for column in zip(*parts, strict=True)))


@dataclass
class _Rows:
    """Those rows of a piece of the layer that still swap."""

    index: Int[Tensor, " rows"]
    weight: Float[Tensor, "rows in"]
    keep: Bool[Tensor, "rows in"]
    free: Bool[Tensor, "rows in"] | None  # may be dropped
    product: Float[Tensor, "rows in"]  # c
    error: Float[Tensor, " rows"]
    settled: Float[Tensor, " rows"]  # error when c was last computed anew

    def only(self, stays: Bool[Tensor, " rows"]) -> _Rows:
        """Without the rows that are done."""
        if bool(stays.all()):
            return self
        at = stays.nonzero()[:, 0]
        free = None if self.free is None else self.free[at]
        return _Rows(
            self.index[at], self.weight[at], self.keep[at], free, self.product[at], self.error[at], self.settled[at]
        )

    def costs(self, diagonal: Float[Tensor, " in"]) -> tuple[Float[Tensor, "rows in"], Float[Tensor, "rows in"]]:
        """a of what is pruned and b of what may be dropped; infinite elsewhere."""
        own = self.weight.square() * diagonal
        shared = 2 * self.weight * self.product
        droppable = self.keep if self.free is None else self.keep & self.free
        return (own - shared).masked_fill_(self.keep, math.inf), (own + shared).masked_fill_(~droppable, math.inf)


@dataclass(frozen=True)
class _Pairs:
    """For every row the best pair found: the change of its error (infinite: no pair), what grows, what is dropped."""

    change: Float[Tensor, " rows"]
    grown: Int[Tensor, " rows"]
    dropped: Int[Tensor, " rows"]


def _settle(
    weight: Tensor, keep: Tensor, free: Tensor | None, gram: Tensor, target: Target, limit: int, candidates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All swaps of some rows: the new pattern, swaps, errors before and after."""
    product, before = _errors(weight, keep, gram)
    if not bool(torch.isfinite(before).all()):
        raise NumericsError(
            "the output errors of the rows are not finite; "
            "run in float32 (--dtype float32) or check the calibration data"
        )
    pattern, swaps, diagonal = keep.clone(), torch.zeros_like(before, dtype=torch.int64), gram.diagonal()
    rows = _Rows(torch.arange(len(weight), device=weight.device), weight, keep.clone(), free, product, before, before)
    rows = rows.only(before > 0)
    for done in range(limit):
        if done and done % REFRESH == 0:
            rows.product, rows.error = _errors(rows.weight, rows.keep, gram)
            fell, rows.settled = rows.error < rows.settled, rows.error
            rows = rows.only(fell)  # a row that only rounding moves would go on for ever
        grow, drop = rows.costs(diagonal)
        enough = -ENOUGH * rows.error
        if isinstance(target, SemiStructured):
            best = _best_in_groups(grow, drop, rows.weight, gram, target.m)
        else:
            best = _best(grow, drop, rows.weight, gram, candidates, enough)
        goes = best.change < enough
        rows, best = rows.only(goes), _Pairs(best.change[goes], best.grown[goes], best.dropped[goes])
        if len(rows.index) == 0:
            break
        _carry_out(rows, best, gram)
        pattern[rows.index, best.grown], pattern[rows.index, best.dropped] = True, False
        swaps[rows.index] += 1
    after = _errors(weight, pattern, gram)[1]
    rose = after > before  # by rounding: such a row stays as it was
    pattern[rose], swaps[rose] = keep[rose], 0
    return pattern, swaps, before, torch.minimum(before, after)


def _errors(weight: Tensor, keep: Tensor, gram: Tensor) -> tuple[Float[Tensor, "rows in"], Float[Tensor, " rows"]]:
    """c = G p of every row, and p^T c."""
    pruned = zeroed(weight, ~keep)
    product = pruned @ gram
    return product, (pruned * product).sum(1)


def _carry_out(rows: _Rows, best: _Pairs, gram: Tensor) -> None:
    """Each row swaps its pair."""
    at = torch.arange(len(rows.index), device=gram.device)
    grown, dropped = (rows.weight[at, i].unsqueeze(1) for i in (best.grown, best.dropped))
    rows.product = torch.addcmul(rows.product, gram[best.dropped], dropped).addcmul_(gram[best.grown], grown, value=-1)
    rows.keep[at, best.grown], rows.keep[at, best.dropped] = True, False
    rows.error = rows.error + best.change


def _best(grow: Tensor, drop: Tensor, weight: Tensor, gram: Tensor, candidates: int, enough: Tensor) -> _Pairs:
    """Each row's best pair of candidates; among all pairs where the candidates have none that lowers the error enough.

    A bound from |G_ij| <= sqrt(G_ii G_jj) could spare a row the look at all its pairs; on trained models it never did.
    """
    count = min(candidates, weight.shape[1])
    (a, i), (b, j) = grow.topk(count, largest=False), drop.topk(count, largest=False)
    shared = (
        gram[i.unsqueeze(2), j.unsqueeze(1)]
        .mul_(weight.gather(1, i).unsqueeze(2))
        .mul_(weight.gather(1, j).unsqueeze(1))
    )
    change, place = (a.unsqueeze(2) + b.unsqueeze(1)).sub_(shared, alpha=2).flatten(1).min(1)
    grown, dropped = (side.gather(1, at.unsqueeze(1))[:, 0] for side, at in ((i, place // count), (j, place % count)))
    short = (change >= enough).nonzero()[:, 0]
    if count < weight.shape[1] and len(short):
        sides = (grow[short], drop[short])
        fewer = sides if torch.isfinite(sides[0]).sum() <= torch.isfinite(sides[1]).sum() else sides[::-1]
        change[short], one, other = _best_of_all(*fewer, weight[short], gram)
        grown[short], dropped[short] = (one, other) if fewer[0] is sides[0] else (other, one)
    return _Pairs(change, grown, dropped)


def _best_of_all(few: Tensor, many: Tensor, weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best of all pairs of every row: its change, its member of the side that has fewer, and that of the other."""
    width = int(torch.isfinite(few).sum(1).max())
    if width == 0:
        nowhere = few.new_zeros(len(few), dtype=torch.int64)
        return few.new_full((len(few),), math.inf), nowhere, nowhere
    found = []
    for f, m, w in zip(
        *(t.split(max(ELEMENTS // (width * weight.shape[1]), 1)) for t in (few, many, weight)), strict=True
    ):
        cost, members = f.topk(width, largest=False)
        at = torch.arange(len(f), device=f.device)
        shared = gram[members].mul_(w.unsqueeze(1))
        changes = torch.addcmul(m.unsqueeze(1), shared, w.gather(1, members).unsqueeze(2), value=-2)
        change, place = (changes.amin(2) + cost).min(1)
        found.append((change, members[at, place], changes[at, place].argmin(1)))
    change, one, other = (torch.cat(column) for column in zip(*found, strict=True))
    return change, one, other


def _best_in_groups(grow: Tensor, drop: Tensor, weight: Tensor, gram: Tensor, m: int) -> _Pairs:
    """Each row's best pair inside a group of ``m``, of all there are."""
    groups = weight.shape[1] // m
    inside = gram.view(groups, m, groups, m).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [groups, m, m]
    w = weight.unflatten(1, (groups, m))
    shared = w.unsqueeze(3) * w.unsqueeze(2) * inside
    change, place = (
        (grow.view_as(w).unsqueeze(3) + drop.view_as(w).unsqueeze(2)).sub_(shared, alpha=2).flatten(1).min(1)
    )
    first = place // (m * m) * m
    return _Pairs(change, first + place % (m * m) // m, first + place % m)
