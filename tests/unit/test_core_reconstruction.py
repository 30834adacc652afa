"""SparseGPT's sweep against optimal brain surgery in float64, one column and one inverse at a time."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles.sparsegpt import sparsegpt
from torch import Tensor

from autoprune.core.curvature import inverse_factor
from autoprune.core.reconstruction import sweep
from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Target, Unstructured

CLEAR = 1e-4  # decisions nearer than this are rounding's, not the method's
ratios = st.sampled_from([0.0, 0.3, 0.5, 0.9])


def _problem(rows: int, features: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator) / features**0.5
    x = torch.randn(tokens, features, generator=generator) @ (mix + torch.eye(features))
    return torch.randn(rows, features, generator=generator), x.T @ x


def _swept(
    weight: Tensor, gram: Tensor, target: Target, column_block: int = 128, damping: float = 0.01
) -> tuple[Tensor, Tensor]:
    return sweep(weight, inverse_factor(gram, damping), target, column_block, [weight.shape[0]])


def _agrees(weight: Tensor, gram: Tensor, target: Target, column_block: int = 128, damping: float = 0.01) -> None:
    pattern = (target.n, target.m) if isinstance(target, SemiStructured) else None
    wanted = sparsegpt(weight, gram, ratio=target.ratio, pattern=pattern, column_block=column_block, damping=damping)
    if hypothesis.currently_in_test_context():
        assume(wanted.gap > CLEAR)
    assert wanted.gap > CLEAR
    new, keep = _swept(weight, gram, target, column_block, damping)
    assert torch.equal(keep, wanted.keep)
    assert torch.equal(new != 0, wanted.keep)
    assert (new - wanted.weight).norm() <= 1e-4 * wanted.weight.norm()


@pytest.mark.parametrize("column_block", [1, 3, 128])
@settings(max_examples=30)
@given(
    rows=st.integers(1, 5),
    features=st.integers(1, 14),
    tokens=st.integers(1, 40),
    ratio=ratios,
    seed=st.integers(0, 10_000),
)
def test_unstructured_equals_surgery(
    column_block: int, rows: int, features: int, tokens: int, ratio: float, seed: int
) -> None:
    """Widths that column blocks divide, do not divide, or exceed; fewer tokens than features among them."""
    weight, gram = _problem(rows, features, tokens, seed)
    _agrees(weight, gram, Unstructured(ratio), column_block)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 3)])
@settings(max_examples=15)
@given(
    rows=st.integers(1, 4),
    groups=st.integers(1, 3),
    column_block=st.sampled_from([1, 6, 128]),
    seed=st.integers(0, 10_000),
)
def test_groups_equal_surgery(n: int, m: int, rows: int, groups: int, column_block: int, seed: int) -> None:
    """Also for column blocks that are no multiple of M: they must not cut a group in two."""
    weight, gram = _problem(rows, groups * m, 30, seed)
    _agrees(weight, gram, SemiStructured(n, m), column_block)
    _, keep = _swept(weight, gram, SemiStructured(n, m), column_block)
    assert count_violations(keep, SemiStructured(n, m)) == 0
    assert keep.unflatten(1, (-1, m)).sum(-1).unique().tolist() == [n]


@pytest.mark.parametrize("features", [128, 131, 160])
def test_the_default_column_block_on_wider_layers(features: int) -> None:
    weight, gram = _problem(3, features, 300, seed=features)
    _agrees(weight, gram, Unstructured(0.5))


@pytest.mark.parametrize(("column_block", "features"), [(1, 5), (3, 10), (4, 8), (128, 300), (128, 7)])
@pytest.mark.parametrize("ratio", [0.29, 0.5, 0.999])
def test_every_column_block_loses_exactly_its_share(column_block: int, features: int, ratio: float) -> None:
    weight, gram = _problem(9, features, 50, seed=3)
    _, keep = _swept(weight, gram, Unstructured(ratio), column_block)
    for part in keep.split(column_block, dim=1):
        assert int((~part).sum()) == math.floor(ratio * part.numel())


@pytest.mark.parametrize("target", [Unstructured(0.5), Unstructured(0.7), SemiStructured(2, 4)], ids=str)
@settings(max_examples=15)
@given(
    heights=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    column_block=st.sampled_from([4, 128]),
    seed=st.integers(0, 1000),
)
def test_stacked_layers_equal_layers_on_their_own(
    target: Target, heights: list[int], column_block: int, seed: int
) -> None:
    """Layers of an input group are swept together, but compared each with itself."""
    weight, gram = _problem(sum(heights), 12, 40, seed)
    curvature = inverse_factor(gram, 0.01)
    together, keep = sweep(weight, curvature, target, column_block, heights)
    for part, weights, keeps in zip(weight.split(heights), together.split(heights), keep.split(heights), strict=True):
        alone, keep_alone = sweep(part, curvature, target, column_block, [len(part)])
        assert torch.equal(keeps, keep_alone)
        torch.testing.assert_close(weights, alone, rtol=1e-5, atol=1e-6)


def test_stacked_layers_of_different_size_keep_their_own_sparsity() -> None:
    """A layer of small weights beside one of large weights would lose everything if they were compared together."""
    weight, gram = _problem(8, 8, 40, seed=5)
    weight[:4] *= 1e-3
    _, keep = sweep(weight, inverse_factor(gram, 0.01), Unstructured(0.5), 128, [4, 4])
    assert [int((~part).sum()) for part in keep.split(4)] == [16, 16]


@pytest.mark.parametrize("target", [Unstructured(0.25), Unstructured(0.5), SemiStructured(2, 4)], ids=str)
def test_dead_features_lose_their_weights(target: Target) -> None:
    """Their weights become zero and the pattern says so, even where more are dead than the target asks for."""
    weight, gram = _problem(4, 8, 40, seed=7)
    for j in (0, 1, 2, 6):
        gram[j] = gram[:, j] = 0
    new, keep = _swept(weight, gram, target)
    assert not new[:, [0, 1, 2, 6]].any() and not keep[:, [0, 1, 2, 6]].any()
    assert torch.equal(new != 0, keep)
    _agrees(weight, gram, target)


def test_a_feature_with_huge_outliers_is_kept_and_nothing_overflows() -> None:
    weight, gram = _problem(6, 16, 60, seed=11)
    scale = torch.ones(16)
    scale[5] = 1e5
    gram = gram * scale * scale[:, None]
    new, keep = _swept(weight, gram, Unstructured(0.5))
    assert bool(torch.isfinite(new).all())
    assert bool(keep[:, 5].all())
    _agrees(weight, gram, Unstructured(0.5))


def test_rank_deficient_gram_gives_finite_weights() -> None:
    weight, gram = _problem(5, 40, 3, seed=13)
    new, keep = _swept(weight, gram, Unstructured(0.5))
    assert bool(torch.isfinite(new).all()) and int((~keep).sum()) == 100
    _agrees(weight, gram, Unstructured(0.5))


def test_survivors_make_up_for_what_goes() -> None:
    """The point of the method: a smaller output error than the same pattern without the update."""
    weight, gram = _problem(8, 32, 200, seed=17)
    new, keep = _swept(weight, gram, Unstructured(0.5))

    def error(change: Tensor) -> float:
        return float(torch.einsum("oi,ij,oj->", change.double(), gram.double(), change.double()))

    assert error(weight - new) < 0.9 * error(weight - weight * keep)


def test_the_given_weights_are_left_alone() -> None:
    weight, gram = _problem(3, 8, 20, seed=19)
    before = weight.clone()
    _swept(weight, gram, Unstructured(0.5))
    assert torch.equal(weight, before)
