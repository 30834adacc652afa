"""The exchange against brute-force pairs, at every granularity and inside N:M groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import exchange as oracle
from oracles import selection
from torch import Tensor

from autoprune.core.exchange import Exchange, count_inverted, exchange
from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Unstructured

GRANULARITIES = ("block", "layer", "output1", "input1")
HALF = Unstructured(0.5)
thresholds = st.one_of(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), st.floats(0, 1))
Layers = tuple[list[Tensor], list[Tensor]]


@st.composite
def layers(draw: st.DrawFn) -> Layers:
    """One to three layers of different shapes with many ties; rows may be all kept or all pruned."""
    distinct = draw(st.sampled_from([1, 2, 4, 30]))
    scores, keep = [], []
    for _ in range(draw(st.integers(1, 3))):
        rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
        scores.append(_matrix(draw, rows, columns, distinct))
        flags = draw(
            st.lists(
                st.one_of(st.just([True] * columns), st.just([False] * columns), _booleans(columns)),
                min_size=rows,
                max_size=rows,
            )
        )
        keep.append(torch.tensor(flags))
    return scores, keep


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Tensor, Tensor, SemiStructured]:
    """One layer that obeys N:M, some groups with fewer survivors than allowed."""
    n, m = draw(st.sampled_from([(2, 4), (1, 4), (3, 4), (4, 8), (1, 2), (2, 3)]))
    rows, groups = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    scores = _matrix(draw, rows, groups * m, draw(st.sampled_from([1, 3, 30])))
    parts = [[True] * draw(st.sampled_from([n, n, n, max(n - 1, 0)])) for _ in range(rows * groups)]
    flags = [draw(st.permutations(part + [False] * (m - len(part)))) for part in parts]
    return scores, torch.tensor(flags).view(rows, groups * m), SemiStructured(n, m)


def _booleans(count: int) -> st.SearchStrategy[list[bool]]:
    return st.lists(st.booleans(), min_size=count, max_size=count)


def _matrix(draw: st.DrawFn, rows: int, columns: int, distinct: int) -> Tensor:
    values = draw(st.lists(st.integers(0, distinct - 1), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


def _brute_force(
    scores: list[Tensor], keep: list[Tensor], granularity: str, threshold: float, m: int | None = None
) -> oracle.Outcome:
    return oracle.exchange([s.tolist() for s in scores], [k.tolist() for k in keep], granularity, threshold, m)


def _agrees(result: Exchange, wanted: oracle.Outcome) -> None:
    assert [k.tolist() for k in result.keep] == wanted.keep
    assert result.grown == tuple(sum(place[0] == i for place in wanted.grown) for i in range(len(result.keep)))
    assert result.dropped == tuple(sum(place[0] == i for place in wanted.dropped) for i in range(len(result.keep)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(layers(), thresholds)
def test_exchange_equals_brute_force(granularity: str, given_layers: Layers, threshold: float) -> None:
    scores, keep = given_layers
    result = exchange(scores, keep, granularity, threshold, HALF)
    wanted = _brute_force(scores, keep, granularity, threshold)
    _agrees(result, wanted)
    if granularity == "block":  # one set that all layers share: each layer reports the set's numbers
        assert set(result.inverted) == {wanted.inverted} and set(result.compared) == {wanted.compared}
    else:
        assert sum(result.inverted) == wanted.inverted and sum(result.compared) == wanted.compared
    for number, count in enumerate(result.sets):
        sets = oracle.compared_sets([tuple(k.shape) for k in keep], granularity)
        own = [
            [(scores[n][r, c].item(), bool(keep[n][r, c])) for n, r, c in s]
            for s in sets
            if (number in {p[0] for p in s})
        ]
        assert count == sum(oracle.inverted(*map(list, zip(*places, strict=True))) > 0 for places in own if places)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(layers(), thresholds)
def test_sparsity_is_unchanged_in_every_compared_set(granularity: str, given_layers: Layers, threshold: float) -> None:
    scores, keep = given_layers
    new = exchange(scores, keep, granularity, threshold, HALF).keep
    for places in oracle.compared_sets([tuple(k.shape) for k in keep], granularity):
        assert sum(bool(new[n][r, c]) for n, r, c in places) == sum(bool(keep[n][r, c]) for n, r, c in places)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(layers())
def test_threshold_zero_changes_nothing(granularity: str, given_layers: Layers) -> None:
    scores, keep = given_layers
    result = exchange(scores, keep, granularity, 0.0, HALF)
    assert all(torch.equal(new, old) for new, old in zip(result.keep, keep, strict=True))
    assert sum(result.grown) == sum(result.dropped) == 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(layers())
def test_threshold_one_leaves_no_inverted_pair(granularity: str, given_layers: Layers) -> None:
    """All inverted pairs exchanged: afterwards every set keeps its highest scores."""
    scores, keep = given_layers
    again = exchange(scores, exchange(scores, keep, granularity, 1.0, HALF).keep, granularity, 1.0, HALF)
    assert sum(again.inverted) == 0 and sum(again.grown) == 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kept", [True, False])
def test_nothing_to_exchange_when_all_are_kept_or_all_pruned(granularity: str, kept: bool) -> None:
    scores, keep = [torch.rand(3, 4), torch.rand(2, 4)], [torch.full((3, 4), kept), torch.full((2, 4), kept)]
    result = exchange(scores, keep, granularity, 1.0, HALF)
    assert all(torch.equal(new, old) for new, old in zip(result.keep, keep, strict=True))
    assert set(result.compared) == set(result.inverted) == set(result.grown) == {0}


@given(grouped(), thresholds)
@example(
    (
        torch.tensor([[9.0, 8.0, 7.0, 1.0, 0.0, 0.0, 0.0, 0.5]]),
        torch.tensor([[False, False, False, True] * 2]),
        SemiStructured(1, 4),
    ),
    1.0,
)
def test_groups_stay_intact(case: tuple[Tensor, Tensor, SemiStructured], threshold: float) -> None:
    """N:M intact, sparsity of every group unchanged; the example would fill a 1:4 group with two survivors if growth
    were not capped.
    """
    scores, keep, pattern = case
    result = exchange([scores], [keep], "output1", threshold, pattern)
    _agrees(result, _brute_force([scores], [keep], "output1", threshold, pattern.m))
    new = result.keep[0]
    assert torch.equal(new.unflatten(1, (-1, pattern.m)).sum(-1), keep.unflatten(1, (-1, pattern.m)).sum(-1))
    assert count_violations(new, pattern) == 0


def test_group_drops_only_what_it_kept_before() -> None:
    """A grown weight is never among the dropped, even if it scores below its neighbours."""
    scores = torch.tensor([[5.0, 4.0, 6.0, 7.0, 1.0, 2.0, 3.0, 0.5]])
    keep = torch.tensor([[False, False, True, True, True, True, False, False]])
    new = exchange([scores], [keep], "output1", 1.0, SemiStructured(2, 4)).keep[0]
    # inverted: (5, 1), (4, 2); both grow in the first group, which gives up its 6 and 7
    assert new.tolist() == [[True, True, False, False, True, True, False, False]]


@given(layers())
def test_inverted_pairs_are_counted_without_sorting_pairs(given_layers: Layers) -> None:
    for scores, keep in zip(*given_layers, strict=True):
        wanted = [oracle.inverted(s, k) for s, k in zip(scores.tolist(), keep.tolist(), strict=True)]
        assert count_inverted(scores, keep).tolist() == wanted


def test_layers_trade_sparsity_only_within_a_block() -> None:
    scores = [torch.full((2, 4), 1.0), torch.full((2, 4), 2.0)]
    keep = [torch.tensor([[True, True, False, False]] * 2)] * 2
    together = exchange(scores, keep, "block", 1.0, HALF)
    assert [int(k.sum()) for k in together.keep] == [0, 8]
    assert together.grown == (0, 4) and together.dropped == (4, 0)
    apart = exchange(scores, keep, "layer", 1.0, HALF)
    assert [int(k.sum()) for k in apart.keep] == [4, 4]


def test_rebuilt_row_equals_selection_when_everything_inverted_is_exchanged() -> None:
    """With distinct scores and threshold 1, a row ends with its highest scores, as selecting anew would."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(5, 16, generator=generator)
    keep = torch.rand(5, 16, generator=generator).argsort(1) < 8
    new = exchange([scores], [keep], "output1", 1.0, HALF).keep[0]
    assert new.tolist() == selection.keep_in_rows(scores.tolist(), 0.5)
