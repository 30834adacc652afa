"""The damped Gram of an input group on a unit diagonal, and its inverses for the penalties of ALPS."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.errors import NumericsError

WIDEST = 4096  # a decomposition takes ten times as long as a factorisation, in float64: too much for wider Grams
RUNG = 1.3  # ratio of neighbouring penalties for which wider Grams are factorised


@dataclass(frozen=True)
class Decomposed:
    """``H / (n n^T) = Q diag(values) Q^T``: an inverse for any penalty is one product."""

    values: Float[Tensor, " in"]
    vectors: Float[Tensor, "in in"]


@dataclass(frozen=True)
class Spectrum:
    """``H = G + lambda I`` of an input group on a unit diagonal; built once, shared by all layers of the group.

    ``scale`` is the root n of H's diagonal: the scaled matrix ``H / (n n^T)`` belongs to weights ``W * n``.
    """

    gram: Float[Tensor, "in in"]  # G
    damping: float  # lambda as a share of the mean of G's diagonal
    shift: Float[Tensor, ""]  # lambda
    scale: Float[Tensor, " in"]
    dead: Bool[Tensor, " in"]  # features that never fired, unless all are such
    decomposed: Decomposed | None  # None: too wide, factorised for one penalty at a time

    def aim(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """``(W * n) H / (n n^T)``: what the scaled weights give on the scaled matrix."""
        return torch.addmm(weight * self.shift, weight, self.gram).div_(self.scale)

    def usable(self, rho: float) -> float:
        """The penalty to use for ``rho``: itself, or where the Gram is too wide the nearest rung of a ladder."""
        return rho if self.decomposed is not None else RUNG ** round(math.log(rho, RUNG))

    def inverse(self, rho: float) -> Float[Tensor, "in in"]:
        """``(H / (n n^T) + rho I)^-1``.

        Raises: NumericsError if a wide Gram can't be factorised.
        """
        if self.decomposed is not None:
            vectors = self.decomposed.vectors
            return (vectors / (self.decomposed.values + rho)) @ vectors.T
        shifted = _scaled(self.gram, self.shift, self.scale)
        shifted.diagonal().add_(rho)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if int(failed):
            raise NumericsError(
                f"the Gram of the layer inputs with a penalty of {rho:g} could not be factorised; "
                "give more calibration data (--nsamples) or a larger damping (an option of the step)"
            )
        return torch.cholesky_inverse(factor)


def spectrum(gram: Float[Tensor, "in in"], damping: float = 0.01, widest: int = WIDEST) -> Spectrum:
    """Damps and scales the Gram, and up to ``widest`` inputs decomposes it, in float64.

    Raises: NumericsError if the Gram is not finite or can't be decomposed.
    """
    require_finite(gram)
    diagonal = gram.diagonal()
    shift = damping * diagonal.mean()
    scale = (diagonal + shift).sqrt()
    scale = scale.where(scale > 0, 1.0)
    dead = (diagonal == 0) & (shift > 0)
    if len(gram) > widest:
        return Spectrum(gram, damping, shift, scale, dead, None)
    try:
        values, vectors = torch.linalg.eigh(_scaled(gram.double(), shift.double(), scale.double()))
    except torch.linalg.LinAlgError as error:
        raise NumericsError(
            "the Gram of the layer inputs could not be decomposed; "
            "give more calibration data (--nsamples) or a larger damping (an option of the step)"
        ) from error
    values.clamp_(min=0)  # rounding makes a few of a Gram of few tokens negative
    return Spectrum(gram, damping, shift, scale, dead, Decomposed(values.to(gram.dtype), vectors.to(gram.dtype)))


def require_finite(gram: Float[Tensor, "in in"]) -> None:
    """Raises: NumericsError if the Gram holds NaN or infinity."""
    if not bool(torch.isfinite(gram).all()):
        raise NumericsError(
            "the Gram of the layer inputs is not finite; "
            "run in float32 (--dtype float32) or check the calibration data"
        )


def _scaled(
    gram: Float[Tensor, "in in"], shift: Float[Tensor, ""], scale: Float[Tensor, " in"]
) -> Float[Tensor, "in in"]:
    """``(G + lambda I) / (n n^T)``."""
    damped = gram.clone()
    damped.diagonal().add_(shift)
    return damped.div_(scale).div_(scale.unsqueeze(1))
