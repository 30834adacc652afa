"""The mixed target: a layer that also makes up for what its inputs have lost by the pruning before it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.errors import NumericsError

ESCALATIONS = 3  # damping, x10, x100: in float64, which the first of them nearly always satisfies


def mixed_target(
    weight: Float[Tensor, "out in"],
    cross: Float[Tensor, "in in"],
    gram: Float[Tensor, "in in"],
    *,
    share: float = 0.5,
    damping: float = 0.01,
) -> Float[Tensor, "out in"]:
    """``(1 - share) W + share W_e``, where W_e on the pruned stream comes nearest to W on the dense one.

    ``W_e = (W C + lambda W) (G + lambda I)^-1`` minimises ``|W X_dense - W_e X_pruned|^2 + lambda |W - W_e|^2``, with
    ``cross`` the C = X_dense X_pruned^T, ``gram`` the G = X_pruned X_pruned^T, and lambda ``damping`` times the mean
    of G's diagonal. Weights of inputs that never fired on the pruned stream stay as they are. Factorised in float64.
    Raises: NumericsError if C or G is not finite, or no damping makes G positive definite.
    """
    if not bool(torch.isfinite(cross).all() & torch.isfinite(gram.diagonal()).all()):
        raise NumericsError(
            "the Gram of the layer inputs is not finite; "
            "run in float32 (--dtype float32) or check the calibration data"
        )
    if share == 0:
        return weight.clone()
    dead = gram.diagonal() == 0
    hessian, mean = gram.double(), gram.diagonal().double().mean()
    hessian.diagonal().add_(dead.double())
    for step in range(ESCALATIONS):
        shift = damping * 10**step * mean
        damped = hessian.clone()
        damped.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            # W_e - W = (W C - W G) (G + lambda I)^-1: what is added on dead inputs cancels before it is divided by.
            gap = weight.double() @ (cross.double() - gram.double())
            moved = torch.cholesky_solve(gap.T, factor).T.masked_fill(dead, 0.0)
            return weight + (share * moved).to(weight.dtype)
    raise NumericsError(
        "the Gram of the layer inputs could not be factorised in float64, "
        f"even with damping {damping * 10 ** (ESCALATIONS - 1):g}; "
        "give more calibration data (--nsamples) or a larger damping (an option of the step)"
    )
