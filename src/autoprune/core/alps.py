"""ALPS: a support found by ADMM on the layer's output error, and least squares on it (arXiv 2406.07831)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.core.order_statistics import count_true, zeroed
from autoprune.core.refit import refit
from autoprune.core.selection import keep_for
from autoprune.core.sparsity import Target
from autoprune.core.spectrum import Spectrum

ITERATIONS = 300
CHECK = 3  # iterations between two looks at the support
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # where the changed share is above the first, rho grows by the second
PATIENCE, SETTLED = 30, 3e-4  # after so many iterations a smaller changed share ends the search
FIRST_RHO = 0.1
FROZEN, SHRINKAGE, STARTS = 1e-3, 5.0, 4  # a rho whose first look shows less change was too large
DEAD = 1e-8  # weights of dead inputs count so little that they go first, the larger ones last


@dataclass(frozen=True)
class AlpsResult:
    """The pruned layer, and how the search for its support went."""

    weight: Float[Tensor, "out in"]
    keep: Bool[Tensor, "out in"]
    iterations: int  # of the last start
    rho: float  # penalty in the end
    starts: int  # 1: the first penalty was small enough


@dataclass(frozen=True)
class _Support:
    values: Float[Tensor, "out in"]  # B, the scaled weights that ADMM ends with
    iterations: int
    rho: float
    frozen: bool  # the first look found next to no change


def alps(weight: Float[Tensor, "out in"], spectrum: Spectrum, target: Target, *, per_row: bool = True) -> AlpsResult:
    """Prunes a layer, or a stack of layers that may share one rho, towards the outputs of ``weight``.

    Unstructured targets compare the weights of each row, or without ``per_row`` those of the layer, as the paper does:
    its error is lower then, but perplexity was better per row. N:M compares in its groups. Zeros are exact in number;
    weights of dead inputs go first, and those that must stay keep their value.
    Raises: NumericsError from a factorisation or from the least squares.
    """

    def top(values: Tensor) -> Tensor:
        return keep_for(values.abs(), target, per_row=per_row)

    faint = torch.where(spectrum.dead, DEAD * weight, weight)
    support, starts = _search(faint, spectrum, top, FIRST_RHO, FROZEN), 1
    while support.frozen:
        starts += 1
        first_rho = FIRST_RHO / SHRINKAGE ** (starts - 1)
        support = _search(faint, spectrum, top, first_rho, FROZEN if starts < STARTS else 0.0)
    keep = top(support.values)
    near = zeroed(torch.where(spectrum.dead, weight, support.values / spectrum.scale), keep)
    new = refit(weight, keep, spectrum.gram, damping=spectrum.damping, start=near)
    return AlpsResult(new, keep, support.iterations, support.rho, starts)


def _search(
    weight: Float[Tensor, "out in"],
    spectrum: Spectrum,
    top: Callable[[Tensor], Tensor],
    rho: float,
    frozen_below: float,
) -> _Support:
    """ADMM on ``min tr((B - B0) H (B - B0)^T)`` over B = D with D on a support (equation 4), from magnitude's support.

    With T = B + V / rho, D is T where kept, and the new multiplier V is rho T where not: it needs no sum of its own.
    """
    scaled, aim = weight * spectrum.scale, spectrum.aim(weight)
    keep = looked_at = top(scaled)
    kept = max(int(count_true(keep.reshape(-1))), 1)
    pulled, multiplier = zeroed(scaled, keep), torch.zeros_like(scaled)
    values, iteration, used = scaled, 0, 0.0
    for iteration in range(1, ITERATIONS + 1):
        if spectrum.usable(rho) != used:
            used = spectrum.usable(rho)
            inverse = spectrum.inverse(used)
        values = (aim - multiplier).add_(pulled, alpha=used) @ inverse
        free = values.add(multiplier, alpha=1 / used)
        keep = top(free)
        pulled, multiplier = zeroed(free, keep), zeroed(free, ~keep).mul_(used)
        if iteration % CHECK:
            continue
        share = int(count_true((keep ^ looked_at).reshape(-1))) / kept
        looked_at = keep
        if iteration == CHECK and share < frozen_below:
            return _Support(values, iteration, used, frozen=True)
        if share == 0 or (iteration >= PATIENCE and share < SETTLED):
            break
        rho *= next(growth for above, growth in GROWTH if share > above)
    return _Support(values, iteration, used, frozen=False)
