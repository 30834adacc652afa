"""Rotations between values and output projection: the objective against loops, and what is promised of the result."""

from __future__ import annotations

import pytest
import torch
from oracles.rotation import input_entropy, output_entropy
from torch import Tensor

from autoprune.core.heads import HeadTerm, learn_heads
from autoprune.core.rotation import orthogonal
from autoprune.errors import NumericsError

HEADS, GROUP, HEAD, OUT, IN = 2, 3, 4, 5, 6


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _term() -> HeadTerm:
    x = _random(HEADS, GROUP, 30, HEAD, seed=3) * torch.linspace(0.2, 2, HEAD, dtype=torch.float64)
    x = x @ _random(HEAD, HEAD, seed=4)
    return HeadTerm(
        _random(HEADS, HEAD, IN, seed=0),
        _random(IN, seed=1).square(),
        _random(OUT, HEADS, GROUP, HEAD, seed=2),
        x.mT @ x,
    )


def test_the_objective_is_the_formula() -> None:
    """As if each head's values were a layer that adds, and the projection one that reads, turned block by block."""
    term, rotations = _term(), orthogonal(_random(HEADS, HEAD, HEAD, seed=5))
    values = sum(output_entropy(term.values[k], term.squares, rotations[k]) for k in range(HEADS))
    parts = [(k, g) for k in range(HEADS) for g in range(GROUP)]
    whole = torch.block_diag(*[rotations[k] for k, _ in parts])
    outputs = input_entropy(term.outputs.flatten(1), torch.block_diag(*[term.grams[p] for p in parts]), whole)
    assert float(term.entropy(rotations)) == pytest.approx(values + outputs, rel=1e-9)


def test_the_gradient_is_that_of_the_objective() -> None:
    term, free = _term(), _random(HEADS, HEAD, HEAD, seed=9) * 0.3 + torch.eye(HEAD)
    assert torch.autograd.gradcheck(lambda a: term.entropy(orthogonal(a)), free.requires_grad_())


def test_entropy_falls_and_the_result_is_orthogonal() -> None:
    ticks: list[int] = []
    learned = learn_heads(_term(), 60, 0.02, lambda: ticks.append(1))
    unit = torch.eye(HEAD, dtype=torch.float64)
    assert all(torch.allclose(r.T @ r, unit, atol=1e-12) for r in learned.matrices)
    assert learned.after < 0.97 * learned.before and len(ticks) == 60
    assert learned.before == float(_term().entropy(unit.repeat(HEADS, 1, 1)))
    assert torch.equal(learn_heads(_term(), 60, 0.02).matrices, learned.matrices)


def test_numbers_that_went_bad_are_named() -> None:
    term = _term()
    term.values[0, 0, 0] = float("nan")
    with pytest.raises(NumericsError, match="not finite"):
        learn_heads(term, 1, 0.01)


def test_what_does_not_fall_stays_as_it_was() -> None:
    """Steps so large that the last rotation is a random one: it begins where entropy is least."""
    best = learn_heads(_term(), 200, 0.02).matrices
    term = _term()
    turned = HeadTerm(
        best.mT @ term.values, term.squares, term.outputs @ best, best.mT[:, None] @ term.grams @ best[:, None]
    )
    learned = learn_heads(turned, 3, 1e3)
    assert learned.after == learned.before
    assert torch.equal(learned.matrices, torch.eye(HEAD, dtype=torch.float64).repeat(HEADS, 1, 1))
