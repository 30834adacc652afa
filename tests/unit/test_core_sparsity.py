"""Sparsity targets: what is understood, and what every malformed choice is told."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.core.sparsity import SemiStructured, Unstructured, parse_target, reading
from autoprune.errors import AutoPruneError, RecipeError
from autoprune.results.outcome import LayerOutcome


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_any_ratio_between_zero_and_one(ratio: float) -> None:
    assert parse_target("unstructured", ratio) == Unstructured(ratio)


@given(st.integers(2, 64).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m))))
def test_any_n_below_m(pattern: tuple[int, int]) -> None:
    n, m = pattern
    target = parse_target(f"{n}:{m}", None)
    assert target == SemiStructured(n, m)
    assert str(target) == f"{n}:{m}"
    assert target.ratio == pytest.approx((m - n) / m)
    assert parse_target(f"{n}:{m}", (m - n) / m) == target  # the ratio may be said too, if it agrees
    assert (reading(target) is None) == (2 * n == m)


@pytest.mark.parametrize("kind", ["unstructured", "2:4", "4:8"])
@pytest.mark.parametrize("zero", [0, 0.0])
def test_ratio_zero_leaves_the_model_dense(kind: str, zero: float) -> None:
    assert parse_target(kind, zero) is None


def test_the_reading_of_an_uneven_pattern_is_spelled_out() -> None:
    assert reading(SemiStructured(1, 4)) == "1:4: at most 1 of every 4 weights stay non-zero (75% sparse)"
    assert reading(Unstructured(0.5)) is None


@pytest.mark.parametrize("ratio", [1, 1.0, 1.5, -0.1, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["unstructured", "2:4"])
def test_ratio_outside_its_range(kind: str, ratio: float) -> None:
    with pytest.raises(RecipeError, match=rf"--sparsity_ratio {ratio:g} is outside \[0, 1\); give the fraction"):
        parse_target(kind, ratio)


@pytest.mark.parametrize("ratio", [math.nan, "0.5", True, False, [0.5], 0.5j])
def test_ratio_that_is_no_number(ratio: object) -> None:
    with pytest.raises(
        RecipeError, match=r"--sparsity_ratio .* is not a number; give a fraction such as 0.5"
    ) as caught:
        parse_target("unstructured", ratio)  # type: ignore[arg-type]
    assert repr(ratio) in str(caught.value)


def test_ratio_missing() -> None:
    with pytest.raises(
        RecipeError, match=r"--sparsity_ratio is needed with --sparsity_type unstructured: 0.5 zeroes half"
    ):
        parse_target("unstructured", None)


MALFORMED = [
    "",
    "2-4",
    "2:",
    ":4",
    "2:4:8",
    "two:four",
    "2.0:4",
    "-2:4",
    "2 :4",
    " 2:4",
    "2:4\n",
    "+2:4",
    "0x2:4",
    "Unstructured",
    "structured",
]


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_pattern(kind: str) -> None:
    with pytest.raises(RecipeError, match="is neither `unstructured` nor N:M; write for example 2:4") as caught:
        parse_target(kind, None)
    assert f"--sparsity_type {kind!r}" in str(caught.value)


@pytest.mark.parametrize("kind", ["4:2", "1:0", "9:8"])
def test_n_above_m(kind: str) -> None:
    with pytest.raises(RecipeError, match=f"--sparsity_type {kind}: N must not be greater than M"):
        parse_target(kind, None)


@pytest.mark.parametrize(
    ("kind", "effect"), [("0:4", "zero every weight"), ("0:0", "zero every weight"), ("4:4", "prune nothing")]
)
def test_patterns_that_prune_all_or_nothing(kind: str, effect: str) -> None:
    with pytest.raises(RecipeError, match=f"--sparsity_type {kind} would {effect}; choose 0 < N < M, such as 2:4"):
        parse_target(kind, None)


@pytest.mark.parametrize(
    ("kind", "ratio"), [("2:4", 0.6), ("4:8", 0.25), ("1:4", 0.25), ("3:4", 0.75), ("2:4", 0.5001)]
)
def test_ratio_and_pattern_that_disagree(kind: str, ratio: float) -> None:
    """1:4 with 0.25 is the other reading of N:M: it must not pass silently."""
    with pytest.raises(
        RecipeError,
        match=(
            rf"--sparsity_type {kind} makes .* zero, but --sparsity_ratio says {ratio:g}; drop .* or make them agree"
        ),
    ):
        parse_target(kind, ratio)


def test_the_error_is_one_that_users_can_cause() -> None:
    assert issubclass(RecipeError, AutoPruneError)


def test_outcome_knows_its_sparsity() -> None:
    assert LayerOutcome(0, "a", 8, 2).sparsity == 0.25
    assert LayerOutcome(0, "a", 0, 0).sparsity == 0.0
