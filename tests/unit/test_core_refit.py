"""Least squares on the kept weights: the dense solver's answer, and rows and inputs with nothing to solve."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import least_squares as oracle
from torch import Tensor

from autoprune.core.refit import refit
from autoprune.errors import NumericsError


def problem(rows: int, features: int, tokens: int, seed: int, share: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, a random pattern, and the Gram of inputs that hang together and differ in size, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    x = oracle.inputs(tokens, features, generator)
    weight = torch.randn(rows, features, generator=generator)
    return weight, torch.rand(rows, features, generator=generator) < share, x.T @ x


def _is_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


@given(st.integers(1, 5), st.integers(1, 16), st.integers(1, 40), st.integers(0, 1000))
def test_equals_a_dense_solver(rows: int, features: int, tokens: int, seed: int) -> None:
    """Also with fewer tokens than features, where damping alone decides about some directions."""
    weight, keep, gram = problem(rows, features, tokens, seed)
    found = refit(weight, keep, gram, iterations=200, tolerance=1e-6)
    wanted = oracle.refit(weight, keep, gram, 0.01)
    assert torch.equal(found != 0, keep & (found != 0))
    _is_close(found, wanted)


@given(st.integers(0, 1000), st.booleans())
def test_by_its_default_setting_within_a_thousandth_of_the_minimum(seed: int, warm: bool) -> None:
    weight, keep, gram = problem(12, 48, 200, seed)
    start = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) if warm else None
    found = refit(weight, keep, gram, start=start)
    least = oracle.objective(oracle.refit(weight, keep, gram, 0.01), weight, gram, 0.01)
    assert bool((oracle.objective(found, weight, gram, 0.01) <= least * 1.001 + 1e-9).all())


def test_a_start_at_the_solution_stays_there() -> None:
    weight, keep, gram = problem(4, 16, 60, 0)
    solved = oracle.refit(weight, keep, gram, 0.01).float()
    assert torch.equal(refit(weight, keep, gram, start=solved), solved)


def test_no_iteration_leaves_the_start() -> None:
    weight, keep, gram = problem(4, 16, 60, 1)
    assert torch.equal(refit(weight, keep, gram, iterations=0), weight * keep)
    assert torch.equal(refit(weight, keep, gram, start=2 * weight, iterations=0), 2 * weight * keep)


def test_rows_with_all_and_with_nothing_kept() -> None:
    weight, keep, gram = problem(3, 8, 30, 2)
    keep[0], keep[1] = True, False
    found = refit(weight, keep, gram)
    assert torch.equal(found[0], weight[0]) and not bool(found[1].any())
    _is_close(found, oracle.refit(weight, keep, gram, 0.01))


@pytest.mark.parametrize("damping", [0.01, 0.0])
@pytest.mark.parametrize("warm", [False, True])
def test_dead_inputs_keep_their_weights(damping: float, warm: bool) -> None:
    weight, keep, gram = problem(4, 10, 60, 3)
    gram[[2, 7]] = 0
    gram[:, [2, 7]] = 0
    keep[:, 2], keep[:, 7] = True, False
    found = refit(
        weight, keep, gram, damping=damping, start=weight * keep if warm else None, iterations=100, tolerance=1e-6
    )
    torch.testing.assert_close(found[:, 2], weight[:, 2])
    assert not bool(found[:, 7].any())
    live = [j for j in range(10) if j not in (2, 7)]
    wanted = oracle.refit(
        weight[:, live], keep[:, live], gram[live][:, live], damping * 0.8
    )  # the mean diagonal counts dead inputs
    _is_close(found[:, live], wanted)


def test_all_inputs_dead() -> None:
    weight, keep, _ = problem(3, 6, 10, 4)
    assert torch.equal(refit(weight, keep, torch.zeros(6, 6)), weight * keep)


def test_rows_do_not_depend_on_each_other() -> None:
    weight, keep, gram = problem(6, 24, 90, 5)
    torch.testing.assert_close(
        refit(weight, keep, gram)[2:3], refit(weight[2:3], keep[2:3], gram), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("place", "bad"), [((1, 1), float("nan")), ((1, 1), float("inf")), ((0, 2), float("nan"))])
def test_what_is_not_finite_is_refused(place: tuple[int, int], bad: float) -> None:
    weight, keep, gram = problem(3, 4, 20, 6)
    keep[:, :2], keep[:, 2:] = True, False
    gram[place] = gram[place[::-1]] = bad
    with pytest.raises(NumericsError, match="not finite"):
        refit(weight, keep, gram)
