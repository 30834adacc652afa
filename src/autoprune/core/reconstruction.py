"""The column sweep that prunes and compensates (SparseGPT, arXiv 2301.00774, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.core.curvature import Curvature
from autoprune.core.selection import drop_count, keep_highest, keep_n_m
from autoprune.core.sparsity import SemiStructured, Target


def sweep(
    weight: Float[Tensor, "out in"], curvature: Curvature, target: Target, column_block: int, rows: Sequence[int]
) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
    """Prunes the stacked layers of one input group from left to right; survivors make up for what goes.

    ``rows`` are the heights of the stacked layers: scores are compared inside a layer, the update is
    shared. Returns the new weights and the keep pattern, both ``[out, in]``; weights of dead inputs are zero in
    both, even where that is more than the target asks for.
    """
    weight = weight.masked_fill(curvature.dead, 0.0)
    keep = torch.ones_like(weight, dtype=torch.bool)
    width = _aligned(column_block, target)
    for start in range(0, weight.shape[1], width):
        here = slice(start, min(start + width, weight.shape[1]))
        upper = curvature.upper[here, here]
        columns, keep[:, here], errors = _sweep_columns(weight[:, here].clone(), upper, target, rows)
        weight[:, here] = columns
        weight[:, here.stop :] -= errors @ curvature.upper[here, here.stop :]
    return weight, keep & ~curvature.dead


def _aligned(column_block: int, target: Target) -> int:
    """The column block must not cut a group of M in two."""
    if isinstance(target, SemiStructured):
        return max(column_block // target.m, 1) * target.m
    return column_block


def _sweep_columns(
    columns: Float[Tensor, "out width"], upper: Float[Tensor, "width width"], target: Target, rows: Sequence[int]
) -> tuple[Float[Tensor, "out width"], Bool[Tensor, "out width"], Float[Tensor, "out width"]]:
    """One column block: returns its final weights, its keep pattern, and the scaled error of every column."""
    pivots = upper.diagonal()
    errors = torch.zeros_like(columns)
    if isinstance(target, SemiStructured):
        keep = torch.ones_like(columns, dtype=torch.bool)
    else:
        keep = _keep_per_layer(columns.square() / pivots.square(), target.ratio, rows)
    for i in range(columns.shape[1]):
        if isinstance(target, SemiStructured) and i % target.m == 0:
            group = slice(i, i + target.m)
            keep[:, group] = keep_n_m(columns[:, group].square() / pivots[group].square(), target)
        pruned = columns[:, i].masked_fill(keep[:, i], 0.0)  # w - q: what this column loses
        errors[:, i] = pruned / pivots[i]
        columns[:, i:] -= errors[:, i : i + 1] * upper[i, i:]
        columns[:, i].masked_fill_(~keep[:, i], 0.0)
    return columns, keep, errors


def _keep_per_layer(scores: Float[Tensor, "out width"], ratio: float, rows: Sequence[int]) -> Bool[Tensor, "out width"]:
    """The lowest ``ratio`` of each layer's rows x columns goes."""
    parts = [keep_highest(part.reshape(1, -1), drop_count(ratio, part.numel())).view_as(part) for part in scores.split(list(rows))]
    return torch.cat(parts)
