"""Swaps by trying every pair and computing the error of what comes out from scratch, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def error(weight: Tensor, keep: Tensor, gram: Tensor) -> float:
    """``p^T G p`` of one row's pruned weights p."""
    pruned = weight.double() * ~keep
    return float(pruned @ gram.double() @ pruned)


def neighbours(keep: Tensor, protect: Tensor, m: int | None) -> Iterator[Tensor]:
    """Every pattern of a row that differs by one grown and one dropped weight, of one group of ``m`` if given."""
    for i in (~keep).nonzero()[:, 0].tolist():
        for j in (keep & ~protect).nonzero()[:, 0].tolist():
            if m is None or i // m == j // m:
                changed = keep.clone()
                changed[i], changed[j] = True, False
                yield changed


def best(weight: Tensor, keep: Tensor, gram: Tensor, protect: Tensor, m: int | None) -> tuple[float, Tensor]:
    """The least error that one swap leads to, and its pattern; the row's own if there is nothing to swap."""
    tried = [(error(weight, k, gram), k) for k in neighbours(keep, protect, m)]
    return min(tried, key=lambda pair: pair[0]) if tried else (error(weight, keep, gram), keep)


def greedy(
    weight: Tensor, keep: Tensor, gram: Tensor, protect: Tensor, m: int | None, limit: int
) -> tuple[Tensor, int]:
    """One row's pattern after the best swaps, one after the other, and their number."""
    for swaps in range(limit):
        before = error(weight, keep, gram)
        after, changed = best(weight, keep, gram, protect, m)
        if not after - before < -1e-6 * before:
            return keep, swaps
        keep = changed
    return keep, limit


def settle(
    weight: Tensor, keep: Tensor, gram: Tensor, protect: Tensor | None = None, m: int | None = None, limit: int = 1000
) -> tuple[Tensor, list[int]]:
    """Every row on its own."""
    protect = torch.zeros_like(keep) if protect is None else protect
    rows = [greedy(w, k, gram, p, m, limit) for w, k, p in zip(weight, keep, protect, strict=True)]
    return torch.stack([k for k, _ in rows]), [n for _, n in rows]
