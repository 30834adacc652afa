"""Adam on kept weights: the paper's loop, torch's own Adam, rates, and the best values kept."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import adam as oracle
from torch import Tensor

from autoprune.core.masked_adam import Best, MaskedAdam, Schedule


def start(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A weight with a pattern and a norm without one."""
    generator = torch.Generator().manual_seed(seed)
    masters = {"weight": torch.randn(5, 7, generator=generator), "norm": torch.rand(7, generator=generator)}
    return masters, {"weight": torch.rand(5, 7, generator=generator) < 0.5}


def gradients(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Gradients of very different sizes, for pruned weights too."""
    generator = torch.Generator().manual_seed(seed + 1)
    sizes = torch.randn(5, 7, generator=generator).mul(3).exp()
    return [
        {"weight": torch.randn(5, 7, generator=generator) * sizes, "norm": torch.randn(7, generator=generator)}
        for _ in range(count)
    ]


@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from([(0.9, 0.999), (0.9, 0.95)]))
def test_moves_as_the_paper_says_and_only_what_is_kept(seed: int, count: int, betas: tuple[float, float]) -> None:
    masters, keep = start(seed)
    everything = torch.ones(7, dtype=torch.bool)
    given_, rates = gradients(count, seed), [0.01 * (step + 1) for step in range(count)]
    wanted = oracle.train(masters["weight"], keep["weight"], [g["weight"] for g in given_], rates, betas)
    wanted_norm = oracle.train(masters["norm"], everything, [g["norm"] for g in given_], rates, betas)
    adam = MaskedAdam(masters, keep, betas=betas)
    for gradient, rate in zip(given_, rates, strict=True):
        adam.step(gradient, rate)
    torch.testing.assert_close(masters["weight"].double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(masters["norm"].double(), wanted_norm, rtol=1e-4, atol=1e-5)
    assert bool((masters["weight"][~keep["weight"]] == 0).all())


def test_equals_torchs_adam_on_a_product_with_the_pattern() -> None:
    """The same by differentiation: a loss of ``weight * keep`` has no slope where nothing is kept."""
    masters, keep = start(0)
    theirs = {name: (master * keep.get(name, 1)).requires_grad_() for name, master in masters.items()}
    optimizer = torch.optim.Adam(theirs.values(), lr=0.02, foreach=False)
    adam = MaskedAdam(masters, keep)

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return ((x * values["norm"]) @ (values["weight"] * keep["weight"]).T - x[:, :5]).square().mean()

    for seed in range(20):
        x = torch.randn(16, 7, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        loss(theirs, x).backward()
        optimizer.step()
        leaves = {name: master.clone().requires_grad_() for name, master in masters.items()}
        loss(leaves, x).backward()
        adam.step({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, 0.02)
    for name, master in masters.items():
        torch.testing.assert_close(master, theirs[name].detach(), rtol=1e-5, atol=1e-6)


def test_small_steps_are_not_lost_with_bfloat16_gradients() -> None:
    masters = {"weight": torch.ones(1, 1)}
    adam = MaskedAdam(masters, {})
    for _ in range(100):
        adam.step({"weight": torch.ones(1, 1, dtype=torch.bfloat16)}, 1e-5)
    assert masters["weight"].item() == pytest.approx(1 - 100e-5, abs=5e-6)  # bfloat16 has nothing between 1 and 0.996


def test_masters_and_patterns_must_fit() -> None:
    with pytest.raises(ValueError, match=r"weight is torch\.bfloat16"):
        MaskedAdam({"weight": torch.zeros(2, 2, dtype=torch.bfloat16)}, {})
    with pytest.raises(ValueError, match=r"other: the pattern \(2, 2\)"):
        MaskedAdam({"weight": torch.zeros(2, 2)}, {"other": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"weight: the pattern \(1, 2\)"):
        MaskedAdam({"weight": torch.zeros(2, 2)}, {"weight": torch.ones(1, 2, dtype=torch.bool)})


@given(st.integers(1, 300), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_once_and_falls(steps: int, warmup: float) -> None:
    rates = [Schedule(0.5, steps, warmup).rate(step) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(0.5)
    assert all(rate > 0 for rate in rates)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))


def test_the_rates_by_hand() -> None:
    schedule = Schedule(1.0, 10, 0.2)
    found = [schedule.rate(step) for step in range(10)]
    assert found == pytest.approx([1 / 2, 1, 8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9])


def test_the_best_values_are_kept_and_never_worse_than_the_first() -> None:
    masters = {"weight": torch.zeros(2, 2)}
    best = Best(1.0, masters)
    for loss, value in ((1.0, 1.0), (math.nan, 2.0), (math.inf, 3.0)):
        masters["weight"].fill_(value)
        assert not best.offer(loss, masters)
    assert not best.improved
    assert torch.equal(best.values["weight"], torch.zeros(2, 2))
    masters["weight"].fill_(4.0)
    assert best.offer(0.5, masters)
    masters["weight"].fill_(5.0)
    assert not best.offer(0.6, masters)
    assert best.improved and (best.first, best.loss) == (1.0, 0.5)
    assert torch.equal(best.values["weight"], torch.full((2, 2), 4.0))
