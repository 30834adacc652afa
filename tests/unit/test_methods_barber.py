"""LLM-Barber's choices: which value W* a weight has, what its score is, and what solve hands back."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracles.exchange import exchange
from torch import Tensor

from autoprune.core.problem import LayerProblem
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.core.statistics import GradientEnergy
from autoprune.steps.barber import Barber

GRANULARITIES = ("block", "layer", "output1", "input1")


def _problem(name: str, rows: int, target: Target, seed: int) -> LayerProblem:
    """A dense layer, its half-pruned and updated version, and three samples' gradients."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, 8, generator=generator)
    if isinstance(target, SemiStructured):
        keep = (torch.rand(rows, 8 // target.m, target.m, generator=generator).argsort(-1) < target.n).flatten(1)
    else:
        keep = torch.rand(rows, 8, generator=generator) < 0.5
    weight = torch.where(keep, dense + 0.1 * torch.randn(rows, 8, generator=generator), torch.tensor(0.0))
    energy = GradientEnergy.empty((rows, 8))
    energy.update(torch.randn(3, 5, rows, generator=generator), torch.randn(3, 5, 8, generator=generator))
    return LayerProblem(name, weight, target, energy, dense, keep)


def _score(problem: LayerProblem, value: Tensor, metric: str) -> Tensor:
    gradient = (problem.statistic.squares / 3).sqrt()
    return {"W": value.abs(), "D": gradient, "WD": value.abs() * gradient}[metric]


@pytest.mark.parametrize(
    ("granularity", "metric", "retain"), list(itertools.product(GRANULARITIES, ("WD", "W", "D"), (False, True)))
)
def test_solve_equals_brute_force(granularity: str, metric: str, retain: bool) -> None:
    problems = [_problem("q", 3, Unstructured(0.5), 1), _problem("k", 5, Unstructured(0.5), 2)]
    solutions = Barber(granularity, 0.6, metric, retain).solve(problems)
    values = [torch.where(p.weight != 0, p.weight, p.dense) if retain else p.dense for p in problems]
    scores = [_score(p, v, metric).tolist() for p, v in zip(problems, values, strict=True)]
    wanted = exchange(scores, [p.keep.tolist() for p in problems], granularity, 0.6)
    assert wanted.grown  # something to see
    for i, (solution, problem, value) in enumerate(zip(solutions, problems, values, strict=True)):
        assert solution.name == problem.name
        assert solution.keep.tolist() == wanted.keep[i]
        assert solution.notes["grown"] == sum(place[0] == i for place in wanted.grown)
        assert solution.notes["dropped"] == sum(place[0] == i for place in wanted.dropped)
        if retain:
            assert torch.equal(solution.weight, value)
        else:
            assert solution.weight is None  # survivors have their dense value


@pytest.mark.parametrize("pattern", [SemiStructured(2, 4), SemiStructured(1, 4), SemiStructured(4, 8)], ids=str)
def test_groups_stay_intact(pattern: SemiStructured) -> None:
    problem = _problem("q", 6, pattern, 3)
    (solution,) = Barber("output1", 1.0).solve([problem])
    assert not torch.equal(solution.keep, problem.keep)
    assert solution.keep.unflatten(1, (-1, pattern.m)).sum(-1).unique().tolist() == [pattern.n]
    wanted = exchange(
        [_score(problem, problem.dense, "WD").tolist()], [problem.keep.tolist()], "output1", 1.0, pattern.m
    )
    assert solution.keep.tolist() == wanted.keep[0]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_threshold_zero_only_restores_dense_values(granularity: str) -> None:
    problem = _problem("q", 4, Unstructured(0.5), 4)
    (solution,) = Barber(granularity, 0.0).solve([problem])
    assert torch.equal(solution.keep, problem.keep)
    assert solution.weight is None


def test_it_is_a_step_on_sub_blocks_with_a_stream_of_its_own() -> None:
    barber = Barber()
    assert barber.needs.gradients and barber.needs.own_stream and barber.needs.statistic is None
    assert (barber.prune_granularity, barber.threshold, barber.prune_metric, barber.retain_reconstruction) == (
        "output1",
        0.01,
        "WD",
        False,
    )
