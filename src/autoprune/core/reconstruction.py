"""The column sweep that prunes and compensates (SparseGPT, arXiv 2301.00774, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.core.curvature import Curvature
from autoprune.core.order_statistics import zeroed
from autoprune.core.selection import keep_for, keep_n_m
from autoprune.core.sparsity import Counted, SemiStructured, Target, Unstructured

INNER = 32  # columns that are settled one by one before the rest of their column block is updated


def sweep(
    weight: Float[Tensor, "out in"], curvature: Curvature, target: Target, column_block: int, rows: Sequence[int]
) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
    """Prunes the stacked layers of one input group from left to right; survivors make up for what goes.

    ``rows`` are the heights of the stacked layers: scores are compared inside a layer, the update is
    shared. Returns the new weights and the keep pattern, both ``[out, in]``; weights of dead inputs are zero in
    both, even where that is more than the target asks for.
    """
    columns = weight.T.masked_fill(curvature.dead.unsqueeze(1), 0.0).contiguous()  # a column of W lies in one piece
    keep = torch.ones_like(columns, dtype=torch.bool)
    width = _aligned(column_block, target)
    for start in range(0, len(columns), width):
        here = slice(start, min(start + width, len(columns)))
        part = target.between(start, here.stop, len(columns)) if isinstance(target, Counted) else target
        errors = _sweep_block(columns[here], keep[here], curvature.upper[here, here], part, rows)
        columns[here.stop :].addmm_(curvature.upper[here, here.stop :].T, errors, alpha=-1)
    return columns.T.contiguous(), keep.T.contiguous() & ~curvature.dead


def _aligned(column_block: int, target: Target) -> int:
    """The column block must not cut a group of M in two."""
    if isinstance(target, SemiStructured):
        return max(column_block // target.m, 1) * target.m
    return column_block


def _sweep_block(
    columns: Float[Tensor, "width out"],
    keep: Bool[Tensor, "width out"],
    upper: Float[Tensor, "width width"],
    target: Target,
    rows: Sequence[int],
) -> Float[Tensor, "width out"]:
    """Settles one column block in place, weights and pattern; returns the scaled error of every column.

    The update is lazy twice: inside ``INNER`` columns it goes column by column, from there to the rest of the block in
    one product.
    """
    errors = torch.empty_like(columns)
    if not isinstance(target, SemiStructured):
        keep.copy_(_keep_per_layer(_scores(columns, upper), target, rows).T)
    step = _aligned(INNER, target)
    for start in range(0, len(columns), step):
        here = slice(start, min(start + step, len(columns)))
        _sweep_columns(columns[here], keep[here], errors[here], upper[here, here], target)
        columns[here.stop :].addmm_(upper[here, here.stop :].T, errors[here], alpha=-1)
    columns.copy_(zeroed(columns, keep))
    return errors


def _sweep_columns(
    columns: Float[Tensor, "step out"],
    keep: Bool[Tensor, "step out"],
    errors: Float[Tensor, "step out"],
    upper: Float[Tensor, "step step"],
    target: Target,
) -> None:
    """Column by column: what it loses, over the pivot, is its error, which is spread on the columns to its right."""
    pivots = upper.diagonal()
    for i in range(len(columns)):
        if isinstance(target, SemiStructured) and i % target.m == 0:
            group = slice(i, i + target.m)
            keep[group] = keep_n_m(_scores(columns[group], upper[group, group]), target).T
        torch.div(zeroed(columns[i], ~keep[i]), pivots[i], out=errors[i])  # (w - q) / U_ii
        columns[i + 1 :].addr_(upper[i, i + 1 :], errors[i], alpha=-1)


def _scores(columns: Float[Tensor, "width out"], upper: Float[Tensor, "width width"]) -> Float[Tensor, "out width"]:
    """``w^2 / U_jj^2``: the output error that the removal of each weight costs."""
    return (columns.square() / upper.diagonal().square().unsqueeze(1)).T.contiguous()


def _keep_per_layer(
    scores: Float[Tensor, "out width"], target: Unstructured | Counted, rows: Sequence[int]
) -> Bool[Tensor, "out width"]:
    """The target's share of each layer's rows x columns goes, lowest first."""
    parts = [keep_for(part, target, per_row=False) for part in scores.split(list(rows))]
    return torch.cat(parts)
