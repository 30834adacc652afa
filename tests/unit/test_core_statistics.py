"""Streaming accumulators: batches add up, half precision is summed in float32, gradients are squared sample by
sample.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gradients as oracle
from torch import Tensor, nn

from autoprune.core.statistics import GradientEnergy, InputGram, InputNorm

HALVES = [torch.float16, torch.bfloat16]


def _integers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Small whole numbers: their sums are exact in float32 in any order."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 1000))
def test_norm_and_gram_do_not_depend_on_batching(batches: list[int], features: int, seed: int) -> None:
    x = _integers((sum(batches), features), seed)
    norm, gram = InputNorm.empty(features), InputGram.empty(features)
    for part in x.split(batches):
        norm.update(part)
        gram.update(part)
    wanted = [[sum(t[i] * t[j] for t in x.tolist()) for j in range(features)] for i in range(features)]
    assert gram.gram.tolist() == wanted
    assert norm.squares.tolist() == [wanted[i][i] for i in range(features)]
    assert norm.tokens == gram.tokens == len(x)
    torch.testing.assert_close(norm.norm, x.norm(dim=0))


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    """4096 ones: float16 stops counting at 2048, bfloat16 at 256. 300² = 90000 is beyond float16 altogether."""
    ones, large = torch.ones(4096, 3, dtype=dtype), torch.full((1, 3), 300.0, dtype=dtype)
    norm, gram = InputNorm.empty(3), InputGram.empty(3)
    for statistic in (norm, gram):
        for _ in range(2):
            statistic.update(ones)
        statistic.update(large)
    wanted = 8192 + 300.0**2
    assert norm.squares.dtype == gram.gram.dtype == torch.float32
    assert norm.squares.tolist() == [wanted] * 3
    assert gram.gram.tolist() == [[wanted] * 3] * 3


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_energy_squares_each_sample_before_it_sums(samples: int, tokens: int, seed: int) -> None:
    dy, x = _integers((samples, tokens, 3), seed), _integers((samples, tokens, 2), seed + 1)
    energy = GradientEnergy.empty((3, 2))
    energy.update(dy, x)

    def gradient(j: int, o: int, i: int) -> float:
        return sum(dy[j, t, o].item() * x[j, t, i].item() for t in range(tokens))

    assert energy.squares.tolist() == [
        [sum(gradient(j, o, i) ** 2 for j in range(samples)) for i in range(2)] for o in range(3)
    ]
    assert energy.samples == samples


def test_samples_of_opposite_gradient_do_not_cancel() -> None:
    """The sum of both gradients is zero; the mean of their squares is not."""
    energy = GradientEnergy.empty((1, 1))
    energy.update(torch.tensor([[[1.0]], [[-1.0]]]), torch.tensor([[[2.0]], [[2.0]]]))
    assert energy.rms.tolist() == [[2.0]]


def test_float16_gradients_are_formed_in_float32() -> None:
    """The sum over 2049 tokens is a number that half precision does not have."""
    energy = GradientEnergy.empty((1, 1))
    energy.update(torch.ones(1, 2049, 1, dtype=torch.float16), torch.ones(1, 2049, 1, dtype=torch.float16))
    assert energy.rms.tolist() == [[2049.0]]


def test_bfloat16_gradients_are_summed_in_float32_and_rounded_once() -> None:
    """Added up in bfloat16 itself, 4097 ones would stop at 256."""
    energy = GradientEnergy.empty((1, 1))
    energy.update(torch.ones(1, 4097, 1, dtype=torch.bfloat16), torch.ones(1, 4097, 1, dtype=torch.bfloat16))
    assert energy.rms.item() == pytest.approx(4097, rel=2**-9)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_gradients_are_squared_in_float32(dtype: torch.dtype) -> None:
    """A gradient of 1e-3 squares to 1e-6, which float16 all but loses; 1e3 squares to infinity there."""
    for size in (2.0**-10, 2.0**10):
        energy = GradientEnergy.empty((1, 1))
        energy.update(torch.full((3, 1, 1), size, dtype=dtype), torch.ones(3, 1, 1, dtype=dtype))
        assert energy.squares.dtype == torch.float32
        assert energy.rms.tolist() == [[size]]


def test_energy_equals_autograd_one_sample_at_a_time() -> None:
    """A small network: energies filled from hooks in one backward pass over two batches, gradients one by one."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False)).double()
    x, wanted_output = torch.randn(7, 3, 6).double(), torch.randn(7, 3, 4).double()
    layers = [network[0], network[2]]
    energies = [GradientEnergy.empty(tuple(layer.weight.shape)) for layer in layers]
    for part in (slice(0, 4), slice(4, 7)):  # ragged batches
        seen: list[tuple[Tensor, Tensor]] = []
        handles = [
            layer.register_forward_hook(lambda _m, args, out, seen=seen: seen.append((args[0], out)))
            for layer in layers
        ]
        loss = (network(x[part]) - wanted_output[part]).square().flatten(1).mean(1).sum()
        for handle in handles:
            handle.remove()
        for energy, (inputs, _), dy in zip(
            energies, seen, torch.autograd.grad(loss, [out for _, out in seen]), strict=True
        ):
            energy.update(dy, inputs.detach())
    singly = oracle.per_sample(
        lambda j: (network(x[j]) - wanted_output[j]).square().mean(), [layer.weight for layer in layers], 7
    )
    for energy, wanted in zip(energies, oracle.rms(singly), strict=True):
        assert energy.samples == 7
        torch.testing.assert_close(energy.rms.double(), wanted, rtol=1e-5, atol=1e-9)
