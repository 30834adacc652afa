"""Sharing out a fixed number of zeros among blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.order_statistics import kth_lowest
from autoprune.core.selection import drop_count
from autoprune.core.sparsity import Counted

HALVINGS = 60
CONVEX = 1.01  # the least power: below 1 the sum would have no single minimum
NOTHING = 1e-12  # nats for the whole model: less is rounding
LEAST = 0.1  # a block keeps at least this part of the share that blocks keep on average


def outlier_share(scores: Sequence[Float[Tensor, "_ _"]], factor: float) -> float:
    """The share of a block's scores above ``factor`` times their mean (OWL, arXiv 2310.05175, eq. 1)."""
    size = sum(part.numel() for part in scores)
    mean = sum(float(part.sum(dtype=torch.float64)) for part in scores) / size
    return sum(int((part > factor * mean).sum()) for part in scores) / size


def median_score(scores: Sequence[Float[Tensor, "_ _"]]) -> float:
    """The (lower) median of a block's scores (DLP, arXiv 2505.23807)."""
    flat = torch.cat([part.flatten() for part in scores])
    return float(kth_lowest(flat[None], (flat.numel() + 1) // 2))


def block_ratios(worth: Sequence[float], weights: Sequence[int], ratio: float, reach: float) -> list[float]:
    """What share of each block's weights goes: less where it is worth more.

    ``ratio - 2 reach (d - mean d)``, d the worth min-max normalised. Clipped to [0, 1 - (1 - ratio) / 10]; a common
    shift, found by bisection, then makes the mean, weighted by ``weights``, equal to ``ratio``.
    """
    low, span = min(worth), max(worth) - min(worth)
    wanted = [-2 * reach * ((d - low) / span if span > 0 else 0.0) for d in worth]
    top, aim = 1 - LEAST * (1 - ratio), ratio * sum(weights)

    def shifted(by: float) -> list[float]:
        return [min(max(share + by, 0.0), top) for share in wanted]

    return _meeting(shifted, weights, aim, 0.0, 1 + 2 * reach, HALVINGS)


def halfway(ratio: float, reach: float) -> tuple[float, float]:
    """The least and the largest ratio around ``ratio``: ``reach`` away, but at most half-way to 0 and to 1."""
    return max(ratio - reach, ratio / 2), min(ratio + reach, (1 + ratio) / 2)


def least_divergence(
    losses: Sequence[tuple[float, float]], weights: Sequence[int], ratio: float, low: float, high: float
) -> list[float]:
    """What share of each block's weights goes, between ``low`` and ``high``, so that losses add up to the least.

    ``losses``: by block, what the model loses with this block alone pruned at ``low`` and at ``high``, not negative.
    In between it is ``a r^p``, through both, with p at least ``CONVEX``. Of ratios whose mean, weighted by
    ``weights``, is ``ratio``, the sum is least where all of ``a p r^(p - 1) / weight`` are equal, or r is at an end:
    a separable convex problem, solved by bisection on the logarithm of the multiplier.
    """
    log_low, log_high = math.log(low), math.log(high)
    slopes: list[tuple[float, float]] = []  # p - 1, and the logarithm of a p / weight
    for (at_low, at_high), n in zip(losses, weights, strict=True):
        least = NOTHING * n / sum(weights)
        top = math.log(max(at_high, least))
        power = max((top - math.log(max(at_low, least))) / (log_high - log_low), CONVEX)
        slopes.append((power - 1, top - power * log_high + math.log(power) - math.log(n)))

    def at(multiplier: float) -> list[float]:
        logs = ((multiplier - offset) / power for power, offset in slopes)
        return [math.exp(min(max(log, log_low), log_high)) for log in logs]

    below = min(offset + power * log_low for power, offset in slopes)
    above = max(offset + power * log_high for power, offset in slopes)
    return _meeting(at, weights, ratio * sum(weights), below, above, 2 * HALVINGS)


def _meeting(
    ratios: Callable[[float], list[float]],
    weights: Sequence[int],
    aim: float,
    below: float,
    above: float,
    halvings: int,
) -> list[float]:
    """``ratios``, which grow with their argument, where their sum, weighted, comes to ``aim``: by bisection."""
    for _ in range(halvings):
        middle = (below + above) / 2
        if sum(r * n for r, n in zip(ratios(middle), weights, strict=True)) < aim:
            below = middle
        else:
            above = middle
    return ratios(above)


def counted(ratios: Sequence[float], weights: Sequence[int], ratio: float) -> list[Counted]:
    """By layer: the whole number of its zeros; together exactly ``floor(ratio * sum(weights))``.

    ``ratios``, by layer, have (but for rounding) the weighted mean ``ratio``. Each count is rounded down; what is
    missing goes, one zero each, to the layers that lost most by that, the earlier one among equals.
    """
    exact = [r * n for r, n in zip(ratios, weights, strict=True)]
    zeros = [int(e) for e in exact]
    missing = drop_count(ratio, sum(weights)) - sum(zeros)
    step = 1 if missing >= 0 else -1  # rounding of floats may put the sum above
    order = sorted(range(len(exact)), key=lambda i: step * (zeros[i] - exact[i]))
    for i in order[: abs(missing)]:
        zeros[i] += step
    return [Counted(z, n) for z, n in zip(zeros, weights, strict=True)]
