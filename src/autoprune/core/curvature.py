"""SparseGPT's curvature: damping, dead inputs, and the Cholesky factor of the inverse Hessian (arXiv 2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.errors import NumericsError

ESCALATIONS = 4  # damping, x10, x100, x1000: first in float32, then the same again in float64


@dataclass(frozen=True)
class Curvature:
    """What the sweep needs of an input group, shared by all its layers."""

    upper: Float[Tensor, "in in"]  # U with U^T U = (H + damping)^-1
    dead: Bool[Tensor, " in"]  # features that never fired
    damping: float  # fraction of the mean diagonal that was added in the end
    precision: str  # dtype in which the factorisation succeeded
    attempts: int  # 1 = at once


def inverse_factor(gram: Float[Tensor, "in in"], damping: float) -> Curvature:
    """Factorises the damped Gram; on failure damping grows tenfold, a few times, then the same in float64.

    Raises: NumericsError if the Gram is not finite or no attempt succeeds.
    """
    diagonal = gram.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise NumericsError(
            "the Gram of the layer inputs is not finite; run in float32 (--dtype float32) or check the calibration"
            " data"
        )
    dead = diagonal == 0
    hessian = _with_diagonal(gram, dead.to(gram.dtype))
    mean = hessian.diagonal().mean()
    attempts = 0
    for dtype in (torch.float32, torch.float64):
        for step in range(ESCALATIONS):
            attempts += 1
            share = damping * 10**step
            upper = _try_factor(hessian.to(dtype), share * mean.to(dtype))
            if upper is not None:
                return Curvature(upper.to(gram.dtype), dead, share, str(dtype).removeprefix("torch."), attempts)
    raise NumericsError(
        f"the Hessian of the layer inputs could not be factorised, even with damping {share:g} in float64; "
        "give more calibration data (--nsamples) or a larger --damping"
    )


def _try_factor(hessian: Float[Tensor, "in in"], shift: Float[Tensor, ""]) -> Float[Tensor, "in in"] | None:
    """The factor, or None if rounding stands in its way.

    Every step lets the one before go: these are the largest tensors of a run.
    """
    factor, failed = torch.linalg.cholesky_ex(_with_diagonal(hessian, shift))
    if int(failed):
        return None
    factor = torch.cholesky_inverse(factor)
    factor, failed = torch.linalg.cholesky_ex(factor, upper=True)
    return None if int(failed) or not bool(torch.isfinite(factor.sum())) else factor


def _with_diagonal(matrix: Float[Tensor, "in in"], added: Float[Tensor, "*in"]) -> Float[Tensor, "in in"]:
    """A copy with something added on the diagonal."""
    changed = matrix.clone()
    changed.diagonal().add_(added)
    return changed
