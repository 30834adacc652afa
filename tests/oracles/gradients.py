"""Weight gradients of every sample on its own, by asking autograd once per sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def per_sample(loss: Callable[[int], Tensor], weights: Sequence[Tensor], samples: int) -> list[list[Tensor]]:
    """``[sample][weight]``: the gradient of ``loss(sample)``."""
    return [list(torch.autograd.grad(loss(j), weights)) for j in range(samples)]


def rms(gradients: list[list[Tensor]]) -> list[Tensor]:
    """``sqrt(mean_j G_j^2)`` of every weight."""
    return [
        torch.stack([g.double() for g in of_one_weight]).square().mean(0).sqrt()
        for of_one_weight in zip(*gradients, strict=True)
    ]
