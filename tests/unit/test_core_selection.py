"""Selection against sorting: exactly floor(ratio * n) weights go, lowest first, ties by lower index."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import selection as oracle
from torch import Tensor

from autoprune.core.selection import (
    count_violations,
    drop_count,
    keep_for,
    keep_highest,
    keep_n_m,
    keep_per_layer,
    keep_per_row,
)
from autoprune.core.sparsity import SemiStructured, Unstructured

ratios = st.one_of(st.sampled_from([0.0, 0.5, 0.7, 0.999999, 1 - 2**-53]), st.floats(0, 0.99))
patterns = st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (2, 3), (5, 7)])


@st.composite
def score_matrices(draw: st.DrawFn, multiple_of: int = 1) -> Tensor:
    """Small matrices of few distinct values, so that ties are the rule, now and then all equal."""
    rows = draw(st.integers(1, 5))
    columns = draw(st.integers(1, 12 // multiple_of if multiple_of <= 12 else 1)) * multiple_of
    distinct = draw(st.integers(1, 6))
    values = draw(st.lists(st.integers(0, distinct - 1), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


@given(score_matrices(), ratios)
def test_layer_comparison_equals_sorting(scores: Tensor, ratio: float) -> None:
    keep = keep_per_layer(scores, ratio)
    assert keep.tolist() == oracle.keep_in_layer(scores.tolist(), ratio)
    assert int((~keep).sum()) == math.floor(Fraction(str(ratio)) * scores.numel())


@given(score_matrices(), ratios)
def test_row_comparison_equals_sorting(scores: Tensor, ratio: float) -> None:
    keep = keep_per_row(scores, ratio)
    assert keep.tolist() == oracle.keep_in_rows(scores.tolist(), ratio)
    assert (~keep).sum(1).tolist() == [math.floor(Fraction(str(ratio)) * scores.shape[1])] * scores.shape[0]


@given(st.data(), patterns)
def test_group_choice_equals_sorting(data: st.DataObject, pattern: tuple[int, int]) -> None:
    n, m = pattern
    scores = data.draw(score_matrices(multiple_of=m))
    keep = keep_n_m(scores, SemiStructured(n, m))
    assert keep.tolist() == oracle.keep_in_groups(scores.tolist(), n, m)
    assert keep.unflatten(1, (-1, m)).sum(-1).unique().tolist() == [n]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_equal_scores_go_from_the_front(ratio: float) -> None:
    """All scores equal: the first floor(ratio * n) indices go, for any ratio."""
    keep = keep_per_layer(torch.full((3, 7), 2.5), ratio)
    gone = math.floor(Fraction(str(ratio)) * 21)
    assert keep.flatten().tolist() == [False] * gone + [True] * (21 - gone)


def test_ratio_zero_keeps_everything() -> None:
    scores = torch.zeros(4, 5)
    assert bool(keep_per_layer(scores, 0.0).all()) and bool(keep_per_row(scores, 0.0).all())


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 4096, 4097, 11_272_192])
def test_a_ratio_below_one_always_leaves_a_weight(size: int) -> None:
    """The largest float below 1 must not round up to "all of them"."""
    assert drop_count(math.nextafter(1.0, 0.0), size) == size - 1


def test_one_column_is_left_alone_by_rows_and_compared_by_layer() -> None:
    scores = torch.tensor([[3.0], [1.0], [2.0]])
    assert bool(keep_per_row(scores, 0.9).all())  # floor(0.9 * 1) = 0
    assert keep_per_layer(scores, 0.5).flatten().tolist() == [True, False, True]


@given(score_matrices())
def test_every_drop_count_is_exact(scores: Tensor) -> None:
    for drop in range(scores.shape[1]):
        assert (~keep_highest(scores, drop)).sum(1).tolist() == [drop] * scores.shape[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_precision(dtype: torch.dtype) -> None:
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 1.0, 2.0, 2.0]], dtype=dtype)
    assert keep_per_row(scores, 0.5).tolist() == [[True, False, True, False], [False, False, True, True]]
    assert keep_n_m(scores, SemiStructured(1, 4)).tolist() == [
        [True, False, False, False],
        [False, False, False, True],
    ]


def test_target_decides_the_comparison() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    assert keep_for(scores, Unstructured(0.5), per_row=False).tolist() == [[False] * 4, [True] * 4]
    assert keep_for(scores, Unstructured(0.5), per_row=True).tolist() == [[False, False, True, True]] * 2
    for per_row in (False, True):
        assert keep_for(scores, SemiStructured(1, 2), per_row=per_row).tolist() == [[False, True, False, True]] * 2


def test_violations_are_groups_with_too_many_survivors() -> None:
    keep = torch.tensor([[True, True, False, False, True, True, True, False], [False] * 8])
    assert count_violations(keep, SemiStructured(2, 4)) == 1
    assert count_violations(keep, SemiStructured(1, 4)) == 2
    assert count_violations(keep, SemiStructured(3, 4)) == 0


@pytest.mark.parametrize(
    ("ratio", "size", "gone"),
    [(0.29, 3200, 928), (0.57, 100, 57), (0.1, 30, 3), (0.7, 10, 7), (0.5, 7, 3), (1 / 3, 9, 2)],
)
def test_ratios_are_the_decimal_numbers_that_were_written(ratio: float, size: int, gone: int) -> None:
    """As binary fractions 0.29 and 0.57 are a little less; 1/3 has no decimal that is not."""
    assert drop_count(ratio, size) == gone
