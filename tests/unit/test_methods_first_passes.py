"""Magnitude, Wanda and SparseGPT as methods: scores, comparison sets, and what they hand back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import selection as oracle
from oracles.sparsegpt import sparsegpt
from torch import Tensor

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.core.statistics import InputGram, InputNorm
from autoprune.steps.base import LayerStep, Step
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.table import BUILT_IN, entry
from autoprune.steps.wanda import Wanda

TARGETS = [Unstructured(0.3), Unstructured(0.5), SemiStructured(2, 4), SemiStructured(1, 4)]


def _integers(rows: int, columns: int, seed: int) -> Tensor:
    """Whole numbers from -3 to 3: ties everywhere, and arithmetic without rounding."""
    return torch.randint(-3, 4, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


def _tokens(features: int, seed: int) -> Tensor:
    """Two tokens (3c, 4c): every feature's norm is exactly 5|c|; some features are dead."""
    c = _integers(1, features, seed)
    return torch.cat([3 * c, 4 * c])


def _expected(scores: oracle.Matrix, target: Target, *, per_row: bool) -> oracle.Keep:
    if isinstance(target, SemiStructured):
        return oracle.keep_in_groups(scores, target.n, target.m)
    return oracle.keep_in_rows(scores, target.ratio) if per_row else oracle.keep_in_layer(scores, target.ratio)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 10_000))
def test_magnitude_equals_sorting(target: Target, rows: int, groups: int, seed: int) -> None:
    weight = _integers(rows, 4 * groups, seed)
    (solution,) = Magnitude().solve([LayerProblem("layer", weight, target)])
    assert solution.keep.tolist() == _expected(oracle.magnitude_scores(weight.tolist()), target, per_row=False)
    assert solution.weight is None  # survivors keep their value


@pytest.mark.parametrize("target", TARGETS, ids=str)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 10_000))
def test_wanda_equals_sorting(target: Target, rows: int, groups: int, seed: int) -> None:
    weight, tokens = _integers(rows, 4 * groups, seed), _tokens(4 * groups, seed + 1)
    norm = InputNorm.empty(4 * groups)
    norm.update(tokens)
    (solution,) = Wanda().solve([LayerProblem("layer", weight, target, norm)])
    assert solution.keep.tolist() == _expected(
        oracle.wanda_scores(weight.tolist(), tokens.tolist()), target, per_row=True
    )
    assert solution.weight is None


def _gram(x: Tensor) -> InputGram:
    gram = InputGram.empty(x.shape[1])
    gram.update(x)
    return gram


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_sparsegpt_equals_surgery_on_every_layer_of_an_input_group(target: Target) -> None:
    generator = torch.Generator().manual_seed(4)
    gram = _gram(torch.randn(60, 16, generator=generator))
    weights = {name: torch.randn(rows, 16, generator=generator) for name, rows in (("q", 6), ("k", 2), ("v", 3))}
    method = SparseGPT(column_block=8, damping=0.05)
    solutions = method.solve([LayerProblem(name, w, target, gram) for name, w in weights.items()])
    assert [s.name for s in solutions] == list(weights)
    pattern = (target.n, target.m) if isinstance(target, SemiStructured) else None
    for solution, weight in zip(solutions, weights.values(), strict=True):
        wanted = sparsegpt(weight, gram.gram, ratio=target.ratio, pattern=pattern, column_block=8, damping=0.05)
        assert wanted.gap > 1e-4
        assert torch.equal(solution.keep, wanted.keep)
        torch.testing.assert_close(solution.weight.double(), wanted.weight, rtol=1e-4, atol=1e-5)


def test_sparsegpt_notes_what_the_factorisation_took() -> None:
    gram = InputGram(torch.tensor([[1.0, 1.5, 0.0], [1.5, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    (solution,) = SparseGPT().solve([LayerProblem("layer", torch.ones(2, 3), Unstructured(0.5), gram)])
    assert solution.notes == {"damping": 1.0, "precision": "float32", "attempts": 3, "dead_inputs": 1}


def test_sparsegpt_notes_are_each_layers_own() -> None:
    gram = _gram(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    first, second = SparseGPT().solve([LayerProblem(name, torch.ones(2, 4), Unstructured(0.5), gram) for name in "ab"])
    first.notes["mark"] = True
    assert "mark" not in second.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", [Magnitude(), Wanda(), SparseGPT()], ids=lambda m: type(m).__name__)
def test_models_in_half_precision(method: LayerStep, dtype: torch.dtype) -> None:
    """Half-precision weights, as a model has them, give what float32 gives; activations beyond 256² overflow
    float16 when squared.
    """
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(6, 16, generator=generator).to(dtype)
    x = torch.randn(50, 16, generator=generator).to(dtype)
    x[:, 3] *= 500

    def solve(tokens: Tensor) -> LayerSolution:
        statistic = method.needs.statistic.empty(16) if method.needs.statistic else None
        if statistic is not None:
            statistic.update(tokens)
        return method.solve([LayerProblem("layer", weight, Unstructured(0.5), statistic)])[0]

    half, full = solve(x), solve(x.float())
    assert torch.equal(half.keep, full.keep) and int((~half.keep).sum()) == 48
    if full.weight is not None:
        assert bool(torch.isfinite(half.weight).all()) and torch.equal(half.weight, full.weight)


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_steps_are_frozen_dataclasses_that_say_what_they_are(name: str) -> None:
    method = entry(name).load()
    assert issubclass(method, Step) and method.name == name and method.title == BUILT_IN[name].title
    assert dataclasses.is_dataclass(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method().anything = 1


@pytest.mark.parametrize("method", [Magnitude(), Wanda(), SparseGPT()], ids=lambda m: type(m).__name__)
def test_the_problem_is_left_as_it_was(method: LayerStep) -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    before = weight.clone()
    statistic = method.needs.statistic.empty(8) if method.needs.statistic else None
    if statistic is not None:
        statistic.update(torch.randn(20, 8, generator=torch.Generator().manual_seed(3)))
    method.solve([LayerProblem("layer", weight, Unstructured(0.5), statistic)])
    assert torch.equal(weight, before)
