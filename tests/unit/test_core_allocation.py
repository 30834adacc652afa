"""Allocation at a fixed total, against sorting and adding."""

from __future__ import annotations

import statistics

import pytest
import torch

from autoprune.core.allocation import block_ratios, counted, median_score, outlier_share
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
