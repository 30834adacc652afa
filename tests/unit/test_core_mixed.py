"""The mixed target against least squares on the tokens themselves; what is dead, and what is not finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import least_squares as oracle
from torch import Tensor

from autoprune.core.mixed import mixed_target
from autoprune.core.statistics import CrossGram, InputGram
from autoprune.errors import NumericsError


def streams(features: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, the dense stream ``[tokens, in]``, and what pruning made of it."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(tokens, features, generator=generator)
    pruned = 0.8 * dense + 0.3 * torch.randn(tokens, features, generator=generator)
    return torch.randn(3, features, generator=generator), dense, pruned


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]))
def test_equals_least_squares_on_the_tokens(features: int, tokens: int, seed: int, share: float) -> None:
    weight, dense, pruned = streams(features, tokens, seed)
    found = mixed_target(weight, dense.T @ pruned, pruned.T @ pruned, share=share)
    torch.testing.assert_close(found.double(), oracle.mixed(weight, dense, pruned, share, 0.01), rtol=1e-3, atol=1e-3)


def test_equal_streams_ask_for_the_weights_themselves() -> None:
    weight, dense, _ = streams(6, 20, 0)
    gram = dense.T @ dense
    assert torch.equal(mixed_target(weight, gram, gram), weight)


def test_dead_inputs_keep_their_weights() -> None:
    """An input that pruning silenced says nothing about its weight, and does not disturb those of the others."""
    weight, dense, pruned = streams(6, 40, 1)
    pruned[:, 2] = 0
    found = mixed_target(weight, dense.T @ pruned, pruned.T @ pruned)
    assert torch.equal(found[:, 2], weight[:, 2])
    torch.testing.assert_close(found.double(), oracle.mixed(weight, dense, pruned, 0.5, 0.01), rtol=1e-3, atol=1e-3)
    assert torch.equal(mixed_target(weight, torch.zeros(6, 6), torch.zeros(6, 6)), weight)


def test_more_damping_where_the_gram_is_no_gram() -> None:
    """Eigenvalue -0.5 of diagonal 1: a hundredth and a tenth of it do not help, the whole does."""
    weight, gram = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.5], [1.5, 1.0]])
    wanted = weight + 0.5 * weight @ torch.eye(2) @ torch.linalg.inv(gram + torch.eye(2))
    torch.testing.assert_close(mixed_target(weight, gram + torch.eye(2), gram), wanted)
    with pytest.raises(
        NumericsError, match=r"could not be factorised in float64, even with damping 1; .*--nsamples.*larger damping"
    ):
        mixed_target(weight, gram, torch.tensor([[1.0, 9.0], [9.0, 1.0]]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_refused(bad: float, which: int) -> None:
    weight, dense, pruned = streams(4, 20, 2)
    grams = [dense.T @ pruned, pruned.T @ pruned]
    grams[which][1, 1] = bad
    with pytest.raises(NumericsError, match=r"not finite.*--dtype float32.*calibration"):
        mixed_target(weight, *grams)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 1000))
def test_cross_gram_does_not_depend_on_batching(batches: list[int], features: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense, pruned = (torch.randint(-4, 5, (sum(batches), features), generator=generator).float() for _ in range(2))
    cross, gram = CrossGram.empty(features), InputGram.empty(features)
    for d, p in zip(dense.split(batches), pruned.split(batches), strict=True):
        cross.update(d, p)
        gram.update(p)
    wanted = [
        [sum(d[i] * p[j] for d, p in zip(dense.tolist(), pruned.tolist(), strict=True)) for j in range(features)]
        for i in range(features)
    ]
    assert cross.cross.tolist() == wanted
    assert cross.tokens == gram.tokens == len(dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_gram_of_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    cross = CrossGram.empty(2)
    cross.update(torch.full((4096, 2), 300.0, dtype=dtype), torch.ones(4096, 2, dtype=dtype))
    assert cross.cross.dtype == torch.float32
    assert cross.cross.tolist() == [[4096 * 300.0] * 2] * 2
