"""Least squares on the kept weights: what survives makes up for what went (ALPS, arXiv 2406.07831, section 3.3)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.core.order_statistics import zeroed
from autoprune.errors import NumericsError


def refit(
    weight: Float[Tensor, "out in"],
    keep: Bool[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    *,
    start: Float[Tensor, "out in"] | None = None,
    damping: float = 0.01,
    iterations: int = 30,
    tolerance: float = 1e-4,
) -> Float[Tensor, "out in"]:
    """Every row's minimum of ``(w - w0)^T (G + lambda I) (w - w0)`` with w zero where it is not kept.

    ``weight`` is w0, the values to come near to (dense, or the mixed target), ``gram`` is G, and lambda is ``damping``
    times the mean of G's diagonal. All rows go at once, by conjugate gradients with the diagonal as preconditioner,
    from ``start`` (None: from w0 itself). A row stops when its residual is below ``tolerance`` times that of w0's kept
    weights, all after ``iterations``. A kept weight of a dead input gets its value in ``weight``; a row with nothing
    kept is zero. Returns ``[out, in]``.
    Raises: NumericsError if the Gram or what comes out is not finite.
    """
    if not bool(torch.isfinite(gram).all()):
        raise NumericsError(
            "the Gram of the layer inputs is not finite; "
            "run in float32 (--dtype float32) or check the calibration data"
        )
    diagonal = gram.diagonal()
    shift = damping * diagonal.mean()
    scale = (diagonal + shift).reciprocal()
    scale = scale.where(torch.isfinite(scale), 0.0)  # no damping and a dead input: nothing is known of it
    kept = zeroed(weight, keep)
    residual = zeroed(_times(weight - kept, gram, shift), keep)
    enough = residual.square().sum(1) * tolerance**2
    solution = kept
    if start is not None:
        solution = zeroed(start, keep)
        residual = zeroed(_times(weight - solution, gram, shift), keep)
    solution = _conjugate_gradients(solution, residual, keep, gram, shift, scale, enough, iterations)
    if not bool(torch.isfinite(solution).all()):
        raise NumericsError(
            "the least squares on the kept weights gave values that are not finite; "
            "give more calibration data (--nsamples) or a larger damping (an option of the step)"
        )
    return solution


def _conjugate_gradients(
    solution: Float[Tensor, "out in"],
    residual: Float[Tensor, "out in"],
    keep: Bool[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    shift: Float[Tensor, ""],
    scale: Float[Tensor, " in"],
    enough: Float[Tensor, " out"],
    iterations: int,
) -> Float[Tensor, "out in"]:
    """Goes on with the rows whose squared residual is above ``enough``; the others leave the computation."""
    solution = solution.clone()
    rows = torch.arange(len(solution), device=solution.device)
    direction = preconditioned = residual * scale
    size = (residual * preconditioned).sum(1)
    for _ in range(iterations):
        open_ = (residual.square().sum(1) > enough[rows]).nonzero()[:, 0]
        if len(open_) == 0:
            break
        if len(open_) < len(rows):
            rows, direction, residual, keep, size = (
                rows[open_],
                direction[open_],
                residual[open_],
                keep[open_],
                size[open_],
            )
        ahead = zeroed(_times(direction, gram, shift), keep)
        step = _ratio(size, (direction * ahead).sum(1))
        solution.index_add_(0, rows, direction * step)
        residual = residual - ahead * step
        preconditioned = residual * scale
        before, size = size, (residual * preconditioned).sum(1)
        direction = preconditioned + direction * _ratio(size, before)
    return solution


def _times(
    values: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], shift: Float[Tensor, ""]
) -> Float[Tensor, "out in"]:
    """``values (G + shift I)``, without a second matrix of G's size."""
    return torch.addmm(values * shift, values, gram)


def _ratio(above: Float[Tensor, " out"], below: Float[Tensor, " out"]) -> Float[Tensor, "out 1"]:
    """0 where nothing is left to divide by: that row stands still."""
    return (above / below).where(below > 0, 0.0).unsqueeze(1)
