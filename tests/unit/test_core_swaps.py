"""Swaps on the Gram: brute force takes the same steps, ends where no pair is left, and sees the same errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import swaps as oracle
from oracles.least_squares import inputs
from torch import Tensor

from autoprune.core import swaps
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.core.swaps import Swapped, swap
from autoprune.errors import NumericsError

HALF = Unstructured(0.5)
TARGETS: list[Target] = [HALF, SemiStructured(2, 4), SemiStructured(1, 4), SemiStructured(4, 8)]
SIZES = {"rows": st.integers(1, 4), "groups": st.integers(1, 3), "seed": st.integers(0, 10_000)}


def problem(rows: int, features: int, seed: int, target: Target = HALF) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, a pattern that fits the target but was drawn blindly, and the Gram of inputs that hang together."""
    generator = torch.Generator().manual_seed(seed)
    x = inputs(3 * features, features, generator)
    weight = torch.randn(rows, features, generator=generator)
    m, n = (target.m, target.n) if isinstance(target, SemiStructured) else (features, features // 2)
    keep = torch.rand(rows, features // m, m, generator=generator).argsort(-1).flatten(1) < n
    return weight, keep, x.T @ x


def _m(target: Target) -> int | None:
    return target.m if isinstance(target, SemiStructured) else None


def _is_right(
    found: Swapped, weight: Tensor, keep: Tensor, gram: Tensor, *, protect: Tensor | None = None, target: Target = HALF
) -> None:
    """Errors are those of the patterns; none rises; counts stay, in groups too; nothing is left to gain."""
    none = torch.zeros_like(keep)
    for row in range(len(weight)):
        before, after = (oracle.error(weight[row], k[row], gram) for k in (keep, found.keep))
        scale = 1e-5 * float((weight[row].abs() * gram.diagonal().sqrt()).sum() ** 2)
        assert found.error_before[row].item() == pytest.approx(before, rel=1e-4, abs=scale)
        assert found.error_after[row].item() == pytest.approx(after, rel=1e-4, abs=scale)
        assert found.error_after[row] <= found.error_before[row]
        least, _ = oracle.best(
            weight[row], found.keep[row], gram, (none if protect is None else protect)[row], _m(target)
        )
        assert least >= after - 1e-4 * after
    m = _m(target) or keep.shape[1]
    assert torch.equal(found.keep.unflatten(1, (-1, m)).sum(-1), keep.unflatten(1, (-1, m)).sum(-1))
    if protect is not None:
        assert bool(found.keep[keep & protect].all())


@pytest.mark.parametrize("target", TARGETS, ids=str)
@given(**SIZES)
def test_takes_the_steps_of_brute_force(target: Target, rows: int, groups: int, seed: int) -> None:
    weight, keep, gram = problem(rows, 8 * groups, seed, target)
    found = swap(weight, keep, gram, target, limit=1000, candidates=8 * groups)
    pattern, steps = oracle.settle(weight, keep, gram, m=_m(target))
    assert torch.equal(found.keep, pattern)
    assert found.swaps.tolist() == steps
    _is_right(found, weight, keep, gram, target=target)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@given(**SIZES, limit=st.integers(0, 4))
def test_stops_after_as_many_as_are_allowed(target: Target, rows: int, groups: int, seed: int, limit: int) -> None:
    weight, keep, gram = problem(rows, 8 * groups, seed, target)
    found = swap(weight, keep, gram, target, limit=limit)
    pattern, steps = oracle.settle(weight, keep, gram, m=_m(target), limit=limit)
    assert torch.equal(found.keep, pattern)
    assert found.swaps.tolist() == steps


@given(**SIZES, candidates=st.integers(1, 3), share=st.sampled_from([0.2, 0.5, 0.8]))
def test_few_candidates_end_where_no_pair_is_left_all_the_same(
    rows: int, groups: int, seed: int, candidates: int, share: float
) -> None:
    """The side with fewer members leads the search among all pairs: both cases occur."""
    weight, _, gram = problem(rows, 8 * groups, seed)
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < share  # rows of different counts
    _is_right(swap(weight, keep, gram, HALF, limit=1000, candidates=candidates), weight, keep, gram)


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
@given(**SIZES)
def test_what_is_protected_is_never_dropped(target: Target, rows: int, groups: int, seed: int) -> None:
    weight, keep, gram = problem(rows, 8 * groups, seed, target)
    protect = torch.rand(keep.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    found = swap(weight, keep, gram, target, limit=1000, candidates=2, protect=protect)
    _is_right(found, weight, keep, gram, protect=protect, target=target)
    everything = swap(weight, keep, gram, target, limit=1000, candidates=2, protect=torch.ones_like(keep))
    assert torch.equal(everything.keep, keep) and not bool(everything.swaps.any())


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
def test_many_swaps_and_many_pieces(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """More swaps than c is updated for, and rows that do not fit in one piece: the same as all at once."""
    weight, keep, gram = problem(7, 64, 1, target)
    whole = swap(weight, keep, gram, target, limit=1000)
    monkeypatch.setattr(swaps, "REFRESH", 3)
    monkeypatch.setattr(swaps, "ELEMENTS", 600)
    parts = swap(weight, keep, gram, target, limit=1000)
    assert int(whole.swaps.min()) > 6
    assert torch.equal(parts.keep, whole.keep) and torch.equal(parts.swaps, whole.swaps)
    _is_right(whole, weight, keep, gram, target=target)


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
def test_rows_and_inputs_with_nothing_to_gain(target: Target) -> None:
    weight, keep, gram = problem(5, 16, 2, target)
    keep[0], keep[1], weight[2] = True, False, 0
    gram[[3, 8]] = 0
    gram[:, [3, 8]] = 0
    found = swap(weight, keep, gram, target, limit=1000, candidates=2)
    assert torch.equal(found.keep[:3], keep[:3]) and found.swaps[:3].tolist() == [0, 0, 0]
    assert found.error_after[[0, 2]].tolist() == [0.0, 0.0]
    _is_right(found, weight, keep, gram, target=target)


def test_all_inputs_dead() -> None:
    weight, keep, _ = problem(3, 8, 3)
    found = swap(weight, keep, torch.zeros(8, 8), HALF, limit=10)
    assert torch.equal(found.keep, keep) and not bool(found.error_before.any())


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
def test_swaps_that_only_seem_to_help_end(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if rounding made every swap look worth it: rows go round in circles until c is computed anew."""
    weight, keep, gram = problem(6, 16, 4, target)
    monkeypatch.setattr(swaps, "ENOUGH", -1e3)
    found = swap(weight, keep, gram, target, limit=10**9)
    assert bool((found.error_after <= found.error_before).all())
    undone = found.swaps == 0
    assert torch.equal(found.keep[undone], keep[undone])
    assert torch.equal(found.error_after[undone], found.error_before[undone])


def test_a_pair_that_hangs_together() -> None:
    """Inputs 0 and 1 are the same: to prune both, with weights 1 and -1, costs nothing."""
    gram = torch.tensor([[4.0, 4.0, 0.0, 0.0], [4.0, 4.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    weight, keep = torch.tensor([[1.0, -1.0, 1.0, 1.0]]), torch.tensor([[False, True, False, True]])
    found = swap(weight, keep, gram, HALF, limit=10)
    assert found.keep.tolist() == [[False, False, True, True]]
    assert (found.swaps.tolist(), found.error_before.tolist(), found.error_after.tolist()) == ([1], [5.0], [0.0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    weight, keep, gram = problem(2, 8, 5)
    gram[1, 1] = bad
    with pytest.raises(NumericsError, match=r"not finite.*--dtype float32.*calibration"):
        swap(weight, keep, gram, HALF, limit=3)
