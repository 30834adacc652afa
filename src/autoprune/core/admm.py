"""Gradual pruning by ADMM (arXiv 2401.02938): quick, for its penalty is fixed and one inverse serves a whole group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.core.order_statistics import zeroed
from autoprune.core.selection import drop_count, keep_for, keep_highest, keep_n_m
from autoprune.core.sparsity import SemiStructured, Target
from autoprune.core.spectrum import require_finite
from autoprune.errors import NumericsError

ITERATIONS = 20
GRADUAL = 15  # iterations in which the pattern still changes
EPSILON = 1e-8  # keeps the scale of dead inputs from 0


@dataclass(frozen=True)
class AdmmCurvature:
    """What ADMM needs of an input group, shared by all its layers."""

    scale: Float[Tensor, " in"]  # n, the norm of every input
    hessian: Float[Tensor, "in in"]  # X = G / (n n^T), damped
    inverse: Float[Tensor, "in in"]  # (X + I)^-1


def admm_curvature(gram: Float[Tensor, "in in"], damping: float = 0.1) -> AdmmCurvature:
    """Scales the Gram to a unit diagonal, damps it by a share of its mean diagonal, and inverts it with penalty 1.

    Raises: NumericsError if the Gram is not finite or rounding made it so indefinite that the penalty does not help.
    """
    require_finite(gram)
    scale = gram.diagonal().sqrt() + EPSILON
    hessian = (gram / scale).div_(scale.unsqueeze(1))
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    shifted = hessian.clone()
    shifted.diagonal().add_(1.0)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed):
        raise NumericsError(
            "the Gram of the layer inputs could not be factorised; "
            "give more calibration data (--nsamples) or a larger damping (an option of the step)"
        )
    return AdmmCurvature(scale, hessian, torch.cholesky_inverse(factor))


def admm(
    weight: Float[Tensor, "out in"], curvature: AdmmCurvature, target: Target, *, per_row: bool = True
) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
    """Prunes a layer towards the outputs of ``weight`` in 20 iterations, the pattern growing sparser in the first 15.

    Unstructured targets compare the weights of each row, or without ``per_row`` those of the layer. For N:M the n best
    of every group are safe from the first iteration on, and the others go gradually. Zeros are exact in number.
    Returns the new weights and the keep pattern, both ``[out, in]``.
    """
    scaled = weight * curvature.scale
    aim = scaled @ curvature.hessian
    free, keep = scaled, torch.ones_like(scaled, dtype=torch.bool)
    for step in range(ITERATIONS):
        if step < GRADUAL:
            keep = _gradual(free.abs(), target, 1 - (1 - (step + 1) / GRADUAL) ** 3, per_row)
        pulled = zeroed(free, keep)
        multiplier = free - pulled
        free = torch.addmm(multiplier, aim + pulled - multiplier, curvature.inverse)
    return zeroed(free, keep) / curvature.scale, keep


def _gradual(scores: Float[Tensor, "out in"], target: Target, share: float, per_row: bool) -> Bool[Tensor, "out in"]:
    """Of the weights that have to go in the end, a share is gone."""
    if share == 1:
        return keep_for(scores, target, per_row=per_row)
    if isinstance(target, SemiStructured):
        scores = scores.masked_fill(keep_n_m(scores, target), torch.inf)
    sets = scores if per_row else scores.reshape(1, -1)
    return keep_highest(sets, drop_count(target.ratio * share, sets.shape[1])).view_as(scores)
