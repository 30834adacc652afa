"""Gradual ADMM: the literal iteration in float64, exact counts, and inputs with nothing to tell."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import least_squares, splitting
from oracles.least_squares import problem

from autoprune.core.admm import admm, admm_curvature
from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.errors import NumericsError

TARGETS: list[Target] = [Unstructured(0.5), Unstructured(0.7), SemiStructured(2, 4), SemiStructured(1, 4)]


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40), st.integers(0, 1000))
def test_equals_the_literal_iteration(
    per_row: bool, target: Target, rows: int, groups: int, tokens: int, seed: int
) -> None:
    """In float64 on both sides, so that rounding decides nothing; with fewer tokens than features among them."""
    weight, gram = problem(rows, 4 * groups, tokens, seed)
    pattern = (target.n, target.m) if isinstance(target, SemiStructured) else None
    wanted, wanted_keep = splitting.admm(weight, gram, target.ratio, pattern=pattern, per_row=per_row)
    new, keep = admm(weight.double(), admm_curvature(gram.double()), target, per_row=per_row)
    assert torch.equal(keep, wanted_keep)
    torch.testing.assert_close(new, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_single_precision_makes_the_same_choices_almost_everywhere(target: Target) -> None:
    weight, gram = problem(40, 64, 300, seed=1)
    new, keep = admm(weight, admm_curvature(gram), target)
    _, double = admm(weight.double(), admm_curvature(gram.double()), target)
    assert new.dtype == torch.float32 and float((keep == double).float().mean()) > 0.995


@pytest.mark.parametrize("ratio", [0.29, 0.5, 0.999])
@pytest.mark.parametrize(("rows", "features"), [(9, 10), (7, 31)])
def test_zeros_are_exact_in_number(ratio: float, rows: int, features: int) -> None:
    weight, gram = problem(rows, features, 60, seed=2)
    new, keep = admm(weight, admm_curvature(gram), Unstructured(ratio))
    assert (~keep).sum(1).unique().tolist() == [math.floor(ratio * features)]
    assert torch.equal(new != 0, keep)
    _, keep = admm(weight, admm_curvature(gram), Unstructured(ratio), per_row=False)
    assert int((~keep).sum()) == math.floor(ratio * rows * features)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 3), (9, 10)])
@pytest.mark.parametrize("per_row", [True, False])
def test_groups_hold_exactly_n(n: int, m: int, per_row: bool) -> None:
    weight, gram = problem(5, 3 * m, 60, seed=3)
    _, keep = admm(weight, admm_curvature(gram), SemiStructured(n, m), per_row=per_row)
    assert count_violations(keep, SemiStructured(n, m)) == 0
    assert keep.unflatten(1, (-1, m)).sum(-1).unique().tolist() == [n]


def test_survivors_make_up_for_what_goes() -> None:
    weight, gram = problem(16, 64, 300, seed=4)
    new, keep = admm(weight, admm_curvature(gram), Unstructured(0.5))
    alone = least_squares.objective(weight * keep, weight, gram, 0.0).sum()
    assert least_squares.objective(new, weight, gram, 0.0).sum() < 0.6 * alone


def test_dead_inputs_go_first() -> None:
    weight, gram = problem(4, 8, 40, seed=5)
    dead = [0, 1, 2, 6]
    gram[dead] = 0
    gram[:, dead] = 0
    for ratio, left in ((0.25, 2), (0.5, 0)):
        new, keep = admm(weight, admm_curvature(gram), Unstructured(ratio))
        assert bool(torch.isfinite(new).all())
        assert keep[:, dead].sum(1).tolist() == [left] * 4
        torch.testing.assert_close(new[:, dead], weight[:, dead] * keep[:, dead])  # what has to stay keeps its value


def test_all_inputs_dead() -> None:
    weight, _ = problem(3, 8, 10, seed=6)
    new, keep = admm(weight, admm_curvature(torch.zeros(8, 8)), Unstructured(0.5))
    assert torch.equal(keep, splitting.choose_for(0.5, pattern=None, per_row=True)(weight))
    torch.testing.assert_close(new, weight * keep)


def test_rank_deficient_gram_gives_finite_weights() -> None:
    weight, gram = problem(5, 40, 3, seed=7)
    new, keep = admm(weight, admm_curvature(gram), Unstructured(0.5))
    assert bool(torch.isfinite(new).all()) and int((~keep).sum()) == 100


@pytest.mark.parametrize(("place", "bad"), [((1, 1), float("nan")), ((1, 1), float("inf")), ((0, 2), float("nan"))])
def test_a_gram_that_is_not_finite_is_refused(place: tuple[int, int], bad: float) -> None:
    _, gram = problem(3, 4, 20, seed=8)
    gram[place] = gram[place[::-1]] = bad
    with pytest.raises(NumericsError, match="not finite"):
        admm_curvature(gram)


def test_a_gram_that_is_indefinite_is_refused() -> None:
    gram = torch.eye(4)
    gram[0, 1] = gram[1, 0] = 5.0  # no sum of products
    with pytest.raises(NumericsError, match="could not be factorised"):
        admm_curvature(gram)


def test_two_runs_give_the_same_bits_and_the_given_weights_are_left_alone() -> None:
    weight, gram = problem(8, 32, 100, seed=9)
    before = weight.clone(), gram.clone()
    first, second = (admm(weight, admm_curvature(gram), Unstructured(0.5)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(weight, before[0]) and torch.equal(gram, before[1])
