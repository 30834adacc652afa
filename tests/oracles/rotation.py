"""The entropy of a rotated layer's importance, one weight at a time."""

from __future__ import annotations

import math

from torch import Tensor


def rotated(left: Tensor, right: Tensor, i: int, j: int) -> float:
    """One element of a product."""
    return sum(float(left[i, k]) * float(right[k, j]) for k in range(left.shape[1]))


def entropy_of(shares: list[float]) -> float:
    """``-sum s ln s`` of numbers divided by their sum, in nats."""
    total = sum(shares)
    return -sum(s / total * math.log(s / total) for s in shares if s > 0)


def input_entropy(weight: Tensor, gram: Tensor, rotation: Tensor) -> float:
    """Rows of ``(W R)_ij^2 (R^T G R)_jj``, each normalised, all summed up."""
    width = len(gram)
    energies = [
        sum(
            float(rotation[a, j]) * float(gram[a, b]) * float(rotation[b, j])
            for a in range(width)
            for b in range(width)
        )
        for j in range(width)
    ]
    return sum(
        entropy_of([rotated(weight, rotation, i, j) ** 2 * energies[j] for j in range(width)])
        for i in range(len(weight))
    )


def output_entropy(weight: Tensor, squares: Tensor, rotation: Tensor) -> float:
    """Columns of ``(R^T W)_ij^2 G_jj``, each normalised, all summed up."""
    height, width = weight.shape
    return sum(
        entropy_of([rotated(rotation.T, weight, i, j) ** 2 * float(squares[j]) for i in range(height)])
        for j in range(width)
    )
