"""SparseGPT as optimal brain surgery: float64, one column at a time, the inverse taken anew for every column.

With R = (H of the columns that are not yet settled)^-1, removing w_j changes the rest by -(w_j / R_jj) R_j, and
R_jj is the square of the diagonal of the Cholesky factor that the paper uses. No factorisation, no lazy update.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass
class Outcome:
    """New weights, the keep pattern, and how near the nearest decision was."""

    weight: Tensor
    keep: Tensor
    gap: (
        float  # smallest relative distance between a score that stayed and one that went: rounding decides below ~1e-5
    )


def damped(gram: Tensor, damping: float) -> Tensor:
    """H with 1 on the diagonal of dead features, then 1 % (or so) of the mean diagonal added."""
    h = gram.double().clone()
    for j in range(len(h)):
        if h[j, j] == 0:
            h[j, j] = 1
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)


def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    *,
    ratio: float = 0.0,
    pattern: tuple[int, int] | None = None,
    column_block: int = 128,
    damping: float = 0.01,
) -> Outcome:
    """Prunes one layer ``[out, in]`` to a ratio, or to ``pattern`` = (n, m)."""
    w = weight.double().clone()
    rows, width = w.shape
    dead = gram.diagonal() == 0
    w[:, dead] = 0
    hessian = damped(gram, damping)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(width)]
    keep = torch.ones(rows, width, dtype=torch.bool)
    gaps = [math.inf]
    for j in range(width):
        if pattern is not None and j % pattern[1] == 0:
            n, m = pattern
            for row in range(rows):
                _drop(keep, _scores(w, inverses, [row], range(j, j + m)), m - n, gaps)
        if pattern is None and j % column_block == 0:
            scores = _scores(w, inverses, range(rows), range(j, min(j + column_block, width)))
            _drop(keep, scores, math.floor(Fraction(str(ratio)) * len(scores)), gaps)
        for row in range(rows):
            if not keep[row, j]:
                w[row, j:] -= w[row, j] / inverses[j][0, 0] * inverses[j][0]
                w[row, j] = 0
    keep[:, dead] = False  # the weights of dead features are zero, whatever their rank was
    return Outcome(w, keep, min(gaps))


def _scores(
    w: Tensor, inverses: list[Tensor], rows: Iterable[int], columns: Iterable[int]
) -> list[tuple[float, int, int]]:
    """(w² / R_jj, row, column): the output error that the removal of each weight costs."""
    return [(float(w[row, c] ** 2 / inverses[c][0, 0]), row, c) for row in rows for c in columns]


def _drop(keep: Tensor, scores: list[tuple[float, int, int]], count: int, gaps: list[float]) -> None:
    ranked = sorted(scores)
    for _, row, column in ranked[:count]:
        keep[row, column] = False
    if 0 < count < len(ranked):
        last, first = ranked[count - 1][0], ranked[count][0]
        if last > 0 or first > 0:  # zeros on both sides are exact ties, which the lower index settles everywhere
            gaps.append((first - last) / first)
