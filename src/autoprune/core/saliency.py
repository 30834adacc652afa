"""Scores of single weights that need more than a line."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def ria_score(
    weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"], power: float = 0.5
) -> Float[Tensor, "out in"]:
    """Relative importance and activations (Plug-and-Play, ICLR 2024, eq. 3 and 5).

    ``(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||x_j||^power``; 0 / 0, in a row or column of zeros, is 0.
    """
    size = weight.float().abs()
    # Where a sum is zero so is every weight under it: any other divisor gives the 0 that is wanted.
    column, row = size.sum(0, keepdim=True), size.sum(1, keepdim=True)
    relative = size / column.masked_fill(column == 0, 1.0) + size / row.masked_fill(row == 0, 1.0)
    return relative * norm**power
