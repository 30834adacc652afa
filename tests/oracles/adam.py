"""Adam as its paper's algorithm 1 has it, one weight at a time in float64, on the kept weights only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def train(
    start: Tensor, keep: Tensor, gradients: Sequence[Tensor], rates: Sequence[float], betas: tuple[float, float]
) -> Tensor:
    """Where Adam brings ``start`` by these gradients and rates, with pruned weights zero throughout."""
    found = torch.zeros(start.shape, dtype=torch.float64)
    for place in keep.nonzero().tolist():
        at = tuple(place)
        value, mean, square = float(start[at]), 0.0, 0.0
        for count, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
            slope = float(gradient[at])
            mean = betas[0] * mean + (1 - betas[0]) * slope
            square = betas[1] * square + (1 - betas[1]) * slope * slope
            corrected = (square / (1 - betas[1] ** count)) ** 0.5
            value -= rate * (mean / (1 - betas[0] ** count)) / (corrected + 1e-8)
        found[at] = value
    return found
