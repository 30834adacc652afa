"""Allocation at a fixed total, against sorting and adding."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.core.allocation import (
    block_ratios,
    counted,
    halfway,
    least_divergence,
    median_score,
    outlier_share,
)
from autoprune.core.selection import keep_for
from autoprune.core.sparsity import Counted, SemiStructured, target_from
from autoprune.errors import RecipeError
from autoprune.steps.allocate import Allocate
from tests.oracles.selection import lowest


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", [0.01, 0.29, 0.5, 0.7, 0.97])
@pytest.mark.parametrize("reach", [0.0, 0.08, 0.45])
def test_the_total_is_exact(ratio: float, reach: float) -> None:
    worth, weights = [0.3, 0.1, 0.9, 0.5, 0.1], [35, 77, 121, 60, 77]
    ratios = block_ratios(worth, weights, ratio, reach)
    assert all(0 <= r < 1 for r in ratios)
    assert sum(r * n for r, n in zip(ratios, weights, strict=True)) == pytest.approx(ratio * sum(weights))
    found = counted(ratios, weights, ratio)
    assert sum(t.zeros for t in found) == round(ratio * 100) * sum(weights) // 100
    assert all(abs(t.zeros - r * t.weights) < 1 for t, r in zip(found, ratios, strict=True))
    assert ratios[2] == min(ratios)


def test_ratios_are_the_formula_where_nothing_is_clipped() -> None:
    worth = [1.0, 3.0, 2.0]
    assert block_ratios(worth, [10, 10, 10], 0.7, 0.08) == pytest.approx([0.78, 0.62, 0.7])
    assert block_ratios([2.0, 2.0], [10, 30], 0.5, 0.08) == pytest.approx([0.5, 0.5])


LOSSES = st.tuples(st.floats(1e-4, 1.0), st.floats(1.05, 20.0))  # at the lower end, and how many times that above


def curve(loss: tuple[float, float], low: float, high: float, r: float) -> float:
    """The power of r through both."""
    power = math.log(loss[1] / loss[0]) / math.log(high / low)
    return loss[0] * (r / low) ** power


@given(st.lists(LOSSES, min_size=3, max_size=3), st.sampled_from([0.3, 0.5, 0.7]))
def test_no_other_ratios_lose_less(found: list[tuple[float, float]], ratio: float) -> None:
    """Three blocks on a grid: two ratios are tried, the total gives the third."""
    weights, (low, high) = [10, 30, 20], halfway(ratio, 0.15)
    # A curve that is not convex (a power below 1) has no least sum that bisection could find.
    losses = [(at_low, at_low * max(times, 1.02 * (high / low) ** 1.01)) for at_low, times in found]
    chosen = least_divergence(losses, weights, ratio, low, high)
    assert sum(r * n for r, n in zip(chosen, weights, strict=True)) == pytest.approx(ratio * 60, rel=1e-9)
    assert all(low * (1 - 1e-12) <= r <= high * (1 + 1e-12) for r in chosen)
    reached = sum(curve(loss, low, high, r) for loss, r in zip(losses, chosen, strict=True))
    steps = [low + (high - low) * i / 60 for i in range(61)]
    for a in steps:
        for b in steps:
            c = (ratio * 60 - 10 * a - 30 * b) / 20
            if low <= c <= high:
                tried = sum(curve(loss, low, high, r) for loss, r in zip(losses, (a, b, c), strict=True))
                assert reached <= tried * (1 + 1e-9)


def test_blocks_that_lose_nothing_and_curves_that_fall() -> None:
    low, high = halfway(0.5, 0.1)
    assert least_divergence([(0.0, 0.0)] * 3, [5, 5, 10], 0.5, low, high) == pytest.approx([0.5] * 3)
    idle, busy = least_divergence([(0.0, 0.0), (0.1, 0.3)], [10, 10], 0.5, low, high)
    assert (idle, busy) == (pytest.approx(0.6), pytest.approx(0.4))
    odd = least_divergence([(0.2, 0.1), (0.1, 0.2), (-1e-9, 0.1)], [10, 10, 10], 0.5, low, high)
    assert sum(odd) == pytest.approx(1.5) and all(low * 0.999 <= r <= high * 1.001 for r in odd)


def test_ratios_are_measured_half_way_at_most() -> None:
    assert halfway(0.5, 0.1) == pytest.approx((0.4, 0.6))
    assert halfway(0.1, 0.2) == pytest.approx((0.05, 0.3))
    assert halfway(0.9, 0.2) == pytest.approx((0.7, 0.95))


def test_scores_of_blocks_by_plain_python() -> None:
    parts = [draw(5, 7).abs() ** 3, draw(3, 4, seed=1).abs() ** 3]
    flat = [float(x) for part in parts for x in part.flatten()]
    assert median_score(parts) == statistics.median_low(flat)
    mean = sum(flat) / len(flat)
    assert outlier_share(parts, 3.0) == sum(x > 3 * mean for x in flat) / len(flat)


@pytest.mark.parametrize("zeros", [0, 1, 17, 34])
def test_counted_patterns(zeros: int) -> None:
    scores, target = draw(5, 7).abs(), Counted(zeros, 35)
    layer = keep_for(scores, target, per_row=False)
    assert set((~layer).flatten().nonzero().flatten().tolist()) == lowest(scores.flatten().tolist(), zeros)
    gone = (~keep_for(scores, target, per_row=True)).sum(1).tolist()
    assert sum(gone) == zeros and max(gone) - min(gone) <= 1
    assert target_from("Counted", zeros=zeros, weights=35) == target


def test_parts_add_up() -> None:
    parts = [Counted(101, 300).between(a, b, 30) for a, b in [(0, 7), (7, 14), (14, 30)]]
    assert sum(p.zeros for p in parts) == 101 and sum(p.weights for p in parts) == 300


def test_nothing_to_allocate() -> None:
    with pytest.raises(RecipeError, match="nothing to allocate at 2:4"):
        Allocate().check(SemiStructured(2, 4))
    with pytest.raises(RecipeError, match="--allocation"):
        Allocate(allocation="luck")
