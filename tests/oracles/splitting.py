"""ALPS and gradual ADMM from their formulas: float64, one row and one linear system at a time, supports by sorting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from oracles.least_squares import damped
from oracles.least_squares import refit as least_squares
from oracles.selection import keep_in_groups, keep_in_layer, keep_in_rows, lowest

Choose = Callable[[Tensor], Tensor]  # scores [out, in] -> what stays


def choose_for(ratio: float, *, pattern: tuple[int, int] | None, per_row: bool) -> Choose:
    """The comparison in groups of M, in rows, or in the layer."""

    def choose(scores: Tensor) -> Tensor:
        rows = scores.abs().tolist()
        if pattern is not None:
            return torch.tensor(keep_in_groups(rows, *pattern))
        return torch.tensor((keep_in_rows if per_row else keep_in_layer)(rows, ratio))

    return choose


@dataclass
class Outcome:
    """What ALPS ends with."""

    weight: Tensor
    keep: Tensor
    iterations: int
    rho: float
    starts: int


def alps(weight: Tensor, gram: Tensor, choose: Choose, damping: float = 0.01) -> Outcome:
    """Algorithm 1, then least squares on the support."""
    w, hessian = weight.double(), damped(gram, damping)
    n = hessian.diagonal().sqrt()
    if not bool(n.any()):
        n = torch.ones_like(n)
    scaled, first = hessian / (n[:, None] * n[None, :]), w * n
    y = first @ scaled
    rho, starts = 0.1, 1
    while True:
        b, iterations, rho_end, frozen = _one_start(first, y, scaled, choose, rho, last=starts == 4)
        if not frozen:
            keep = choose(b)
            return Outcome(least_squares(w, keep, gram, damping), keep, iterations, rho_end, starts)
        rho, starts = rho / 5, starts + 1


def _one_start(
    first: Tensor, y: Tensor, scaled: Tensor, choose: Choose, rho: float, *, last: bool
) -> tuple[Tensor, int, float, bool]:
    unit = torch.eye(len(scaled), dtype=torch.float64)
    before = choose(first)
    d, v, b = first * before, torch.zeros_like(first), first
    for t in range(1, 301):
        system = scaled + rho * unit
        b = torch.stack([torch.linalg.solve(system, right) for right in y - v + rho * d])
        keep = choose(b + v / rho)
        d = (b + v / rho) * keep
        v = v + rho * (b - d)
        if t % 3:
            continue
        changed, kept = int((keep != before).sum()), int(keep.sum())
        before = keep
        if t == 3 and changed < 1e-3 * kept and not last:
            return b, t, rho, True
        if changed == 0 or (t >= 30 and changed / kept < 3e-4):
            return b, t, rho, False
        rho *= 1.3 if changed / kept > 0.1 else 1.2 if changed / kept > 0.005 else 1.1
    return b, 300, rho, False


def admm(
    weight: Tensor, gram: Tensor, ratio: float, *, pattern: tuple[int, int] | None, per_row: bool
) -> tuple[Tensor, Tensor]:
    """Twenty iterations, the pattern from |W + U| in the first fifteen."""
    g = gram.double()
    n = g.diagonal().sqrt() + 1e-8
    x = g / (n[:, None] * n[None, :])
    unit = torch.eye(len(g), dtype=torch.float64)
    x = x + 0.1 * x.diagonal().mean() * unit
    first = weight.double() * n
    w, u, keep = first.clone(), torch.zeros_like(first), torch.ones(first.shape, dtype=torch.bool)
    for t in range(20):
        if t < 15:
            keep = _sparser(w + u, ratio, 1 - (1 - (t + 1) / 15) ** 3, pattern, per_row)
        z = (w + u) * keep
        u = u + w - z
        w = torch.stack([torch.linalg.solve(x + unit, right) for right in first @ x + z - u])
    return (w + u) * keep / n, keep


def _sparser(values: Tensor, ratio: float, share: float, pattern: tuple[int, int] | None, per_row: bool) -> Tensor:
    if share == 1:
        return choose_for(ratio, pattern=pattern, per_row=per_row)(values)
    rows = values.abs().tolist()
    if pattern is not None:
        safe = keep_in_groups(rows, *pattern)
        rows = [[math.inf if s else v for v, s in zip(*pair, strict=True)] for pair in zip(rows, safe, strict=True)]
    width = len(rows[0])
    sets = rows if per_row else [[v for row in rows for v in row]]
    gone = [lowest(one, math.floor(ratio * share * len(one))) for one in sets]
    flat = [i not in dropped for one, dropped in zip(sets, gone, strict=True) for i in range(len(one))]
    return torch.tensor(flat).view(-1, width)
