"""Scores and compensation of a smaller model, against slow independent versions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from autoprune.core.shrinking import (
    channel_scores,
    compensated,
    expert_score,
    lowest,
    run_distances,
    turned_share,
)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    sizes = [math.sqrt(sum(float(x) ** 2 for x in v)) for v in (a, b)]
    return dot / (sizes[0] * sizes[1])


def test_influence_and_angles() -> None:
    states = [_random(3, 5, seed=seed) for seed in range(4)]
    expected = [1 - _cosine(a, b) for a, b in zip(states[0], states[1], strict=True)]
    assert turned_share(states[0], states[1]).tolist() == pytest.approx(expected, abs=1e-6)
    for count in (1, 2, 3):
        wanted = [
            sum(math.acos(_cosine(a, b)) for a, b in zip(states[i], states[i + count], strict=True)) / 3 / math.pi
            for i in range(4 - count)
        ]
        assert run_distances(states, count) == pytest.approx(wanted, abs=1e-6)
    assert run_distances([states[0], states[0]], 1) == pytest.approx([0.0], abs=1e-6)


def test_the_lowest_go_and_the_first_of_equals() -> None:
    assert lowest([0.3, 0.1, 0.2, 0.1], 2) == [1, 3]
    assert lowest([0.1, 0.1, 0.1], 2) == [0, 1]
    assert lowest([1.0], 0) == []


def test_scores_of_channels_and_experts() -> None:
    x, weight = _random(50, 6), _random(4, 6, seed=1)
    lost = [float((x[:, [j]] @ weight[:, [j]].T).square().sum()) for j in range(6)]
    assert channel_scores(weight, x.T @ x).tolist() == pytest.approx(lost, rel=1e-4)
    gates, outputs = torch.rand(5), _random(5, 4)
    wanted = sum(float(g) * math.sqrt(float((y * y).sum())) for g, y in zip(gates, outputs, strict=True))
    assert expert_score(gates, outputs) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "with zeros"])
def test_least_squares_on_the_channels_that_stay(zeros: bool) -> None:
    """Row by row, as lstsq solves it with the damping written as further observations."""
    mix = _random(8, 8, seed=2)
    x, weight, kept = _random(60, 8) @ mix, _random(3, 8, seed=1), torch.tensor([0, 2, 3, 6])
    if zeros:
        weight[:, 2::3] = 0.0
    gram = x.T @ x
    made = compensated(weight, kept, gram, damping=0.01)
    damped = torch.cat([x, torch.eye(8) * (0.01 * gram.diagonal().mean()).sqrt()]).double()
    for row, found in zip(weight, made, strict=True):
        there = [int(j) for j in kept if row[j] != 0]
        wanted = torch.zeros(8, dtype=torch.float64)
        wanted[there] = torch.linalg.lstsq(damped[:, there], damped @ row.double()).solution
        assert torch.allclose(found.double(), wanted, atol=2e-3, rtol=1e-3)
    zeroed = torch.zeros_like(weight)
    zeroed[:, kept] = weight[:, kept]
    assert (x @ (made - weight).T).norm() < (x @ (zeroed - weight).T).norm()


def test_all_channels_that_stay_are_left_alone() -> None:
    x, weight = _random(30, 5), _random(3, 5, seed=1)
    assert torch.equal(compensated(weight, torch.arange(5), x.T @ x), weight)
