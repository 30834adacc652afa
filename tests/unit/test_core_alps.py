"""ALPS: the literal algorithm in float64, exact counts, wide Grams by Cholesky, and inputs with nothing to tell."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import least_squares, splitting
from oracles.least_squares import problem
from torch import Tensor

from autoprune.core.alps import alps
from autoprune.core.refit import refit
from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.core.spectrum import RUNG, spectrum
from autoprune.errors import NumericsError

TARGETS: list[Target] = [Unstructured(0.5), Unstructured(0.7), SemiStructured(2, 4), SemiStructured(1, 4)]


def _error(found: Tensor, weight: Tensor, gram: Tensor) -> float:
    return float(least_squares.objective(found, weight, gram, 0.01).sum())


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40), st.integers(0, 1000))
def test_equals_the_literal_algorithm(
    per_row: bool, target: Target, rows: int, groups: int, tokens: int, seed: int
) -> None:
    """In float64 on both sides, so that rounding decides nothing; with fewer tokens than features among them."""
    weight, gram = problem(rows, 4 * groups, tokens, seed)
    pattern = (target.n, target.m) if isinstance(target, SemiStructured) else None
    wanted = splitting.alps(weight, gram, splitting.choose_for(target.ratio, pattern=pattern, per_row=per_row))
    found = alps(weight.double(), spectrum(gram.double()), target, per_row=per_row)
    assert torch.equal(found.keep, wanted.keep)
    assert (found.iterations, found.starts) == (wanted.iterations, wanted.starts)
    assert math.isclose(found.rho, wanted.rho, rel_tol=1e-9)
    assert _error(found.weight, weight, gram) <= 1.001 * _error(wanted.weight, weight, gram) + 1e-9


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_single_precision_makes_the_same_choices_almost_everywhere(target: Target) -> None:
    weight, gram = problem(40, 64, 300, seed=1)
    single = alps(weight, spectrum(gram), target)
    double = alps(weight.double(), spectrum(gram.double()), target)
    assert single.weight.dtype == torch.float32
    assert float((single.keep == double.keep).float().mean()) > 0.99
    assert _error(single.weight, weight, gram) <= 1.005 * _error(double.weight, weight, gram)


@pytest.mark.parametrize("ratio", [0.29, 0.5, 0.999])
@pytest.mark.parametrize(("rows", "features"), [(9, 10), (7, 31)])
def test_zeros_are_exact_in_number(ratio: float, rows: int, features: int) -> None:
    weight, gram = problem(rows, features, 60, seed=2)
    row = alps(weight, spectrum(gram), Unstructured(ratio))
    assert (~row.keep).sum(1).unique().tolist() == [math.floor(ratio * features)]
    layer = alps(weight, spectrum(gram), Unstructured(ratio), per_row=False)
    assert int((~layer.keep).sum()) == math.floor(ratio * rows * features)
    for result in (row, layer):
        assert not bool(result.weight[~result.keep].any())


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 3)])
def test_groups_hold_exactly_n(n: int, m: int) -> None:
    weight, gram = problem(5, 3 * m, 60, seed=3)
    keep = alps(weight, spectrum(gram), SemiStructured(n, m)).keep
    assert count_violations(keep, SemiStructured(n, m)) == 0
    assert keep.unflatten(1, (-1, m)).sum(-1).unique().tolist() == [n]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_better_support_than_magnitude_of_scaled_weights(target: Target) -> None:
    """The point of the search: least squares on the pattern that it began with is worse."""
    weight, gram = problem(16, 64, 300, seed=4)
    pattern = (target.n, target.m) if isinstance(target, SemiStructured) else None
    first = splitting.choose_for(target.ratio, pattern=pattern, per_row=True)(weight * spectrum(gram).scale)
    found = alps(weight, spectrum(gram), target)
    assert _error(found.weight, weight, gram) < 0.9 * _error(refit(weight, first, gram), weight, gram)


@pytest.mark.parametrize("target", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
def test_wide_grams_are_factorised_on_a_ladder(target: Target) -> None:
    """Another way to nearly the same pattern: the penalties differ by less than half a rung."""
    weight, gram = problem(16, 64, 300, seed=5)
    ladder = spectrum(gram, widest=63)
    assert ladder.decomposed is None
    wide, narrow = alps(weight, ladder, target), alps(weight, spectrum(gram), target)
    assert math.isclose(math.log(wide.rho, RUNG), round(math.log(wide.rho, RUNG)), abs_tol=1e-9)
    assert _error(wide.weight, weight, gram) <= 1.02 * _error(narrow.weight, weight, gram)


def test_both_ways_give_one_inverse() -> None:
    _, gram = problem(1, 40, 25, seed=6)
    decomposed, factorised = spectrum(gram), spectrum(gram, widest=39)
    torch.testing.assert_close(decomposed.inverse(0.5), factorised.inverse(0.5), rtol=1e-4, atol=1e-5)


def test_a_frozen_support_begins_again_with_a_smaller_penalty() -> None:
    """Weights far apart on inputs that do not hang together: no penalty changes the choice, so the search ends."""
    generator = torch.Generator().manual_seed(7)
    large = torch.rand(4, 16, generator=generator).argsort(1) < 8
    weight = torch.where(large, 1.0, 1e-3)
    found = alps(weight, spectrum(torch.eye(16)), Unstructured(0.5))
    assert (found.starts, found.iterations) == (4, 3) and math.isclose(found.rho, 0.1 / 5**3)
    assert torch.equal(found.keep, large)
    torch.testing.assert_close(found.weight, weight * large)


@pytest.mark.parametrize("target", [Unstructured(0.25), Unstructured(0.5), SemiStructured(2, 4)], ids=str)
@pytest.mark.parametrize("widest", [4096, 1])
def test_dead_inputs_go_first(target: Target, widest: int) -> None:
    """As far as the target lets them; one that has to stay keeps its value."""
    weight, gram = problem(4, 8, 40, seed=8)
    dead = [0, 1, 2, 6]
    gram[dead] = 0
    gram[:, dead] = 0
    found = alps(weight, spectrum(gram, widest=widest), target)
    assert bool(torch.isfinite(found.weight).all())
    if isinstance(target, SemiStructured):
        assert bool(found.keep[:, 3].all()) and found.keep[:, :3].sum(1).tolist() == [1] * 4
        assert not bool(found.keep[:, 6].any())
    else:
        assert (found.keep[:, dead].sum(1) == max(4 - int(8 * target.ratio), 0)).all()
    stays = found.keep & torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(dead), True)
    torch.testing.assert_close(found.weight[stays], weight[stays])


def test_all_inputs_dead() -> None:
    weight, _ = problem(3, 8, 10, seed=9)
    found = alps(weight, spectrum(torch.zeros(8, 8)), Unstructured(0.5))
    assert torch.equal(found.keep, splitting.choose_for(0.5, pattern=None, per_row=True)(weight))
    torch.testing.assert_close(found.weight, weight * found.keep)


@pytest.mark.parametrize("widest", [4096, 1])
def test_rank_deficient_gram_gives_finite_weights(widest: int) -> None:
    weight, gram = problem(5, 40, 3, seed=10)
    found = alps(weight, spectrum(gram, widest=widest), Unstructured(0.5))
    assert bool(torch.isfinite(found.weight).all()) and int((~found.keep).sum()) == 100


@pytest.mark.parametrize(("place", "bad"), [((1, 1), float("nan")), ((1, 1), float("inf")), ((0, 2), float("nan"))])
def test_a_gram_that_is_not_finite_is_refused(place: tuple[int, int], bad: float) -> None:
    _, gram = problem(3, 4, 20, seed=11)
    gram[place] = gram[place[::-1]] = bad
    with pytest.raises(NumericsError, match="not finite"):
        spectrum(gram)


def test_a_wide_gram_that_is_indefinite_is_refused() -> None:
    gram = torch.eye(4)
    gram[0, 1] = gram[1, 0] = 5.0  # no sum of products
    with pytest.raises(NumericsError, match="could not be factorised"):
        alps(torch.ones(2, 4), spectrum(gram, widest=1), Unstructured(0.5))


def test_two_runs_give_the_same_bits_and_the_given_weights_are_left_alone() -> None:
    weight, gram = problem(8, 32, 100, seed=12)
    before = weight.clone(), gram.clone()
    first, second = (alps(weight, spectrum(gram), Unstructured(0.5)) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.keep, second.keep)
    assert torch.equal(weight, before[0]) and torch.equal(gram, before[1])
