"""The learned rotation: its objective against loops, its gradient against differences, what is promised of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.rotation import input_entropy, output_entropy
from torch import Tensor

from autoprune.core.rotation import (
    InputTerm,
    LearnedRotation,
    OutputTerm,
    RotationTerm,
    Schedule,
    entropy,
    learn_rotation,
    orthogonal,
)
from autoprune.errors import NumericsError

WIDTH = 6


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _gram(width: int, seed: int) -> Tensor:
    x = (
        _random(4 * width, width, seed=seed)
        * torch.linspace(0.1, 2, width, dtype=torch.float64)
        @ _random(width, width, seed=seed + 1)
    )
    return x.T @ x


def _terms(index: int) -> list[RotationTerm]:
    """A block of one reader and one writer, whose energy lies in directions that all blocks share."""
    gram = _gram(WIDTH, 0) + 0.1 * _gram(WIDTH, 10 * index)
    return [
        InputTerm(_random(8, WIDTH, seed=index).float(), gram.float()),
        OutputTerm(_random(WIDTH, 5, seed=index + 50).float(), gram.diagonal()[:5].float()),
    ]


def _learn(seed: int = 0, **schedule: float) -> LearnedRotation:
    return learn_rotation(
        WIDTH, 4, _terms, Schedule(**{"steps": 60, "blocks": 2} | schedule), torch.Generator().manual_seed(seed)
    )


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 100))
def test_the_objective_is_the_formula(out: int, width: int, seed: int) -> None:
    rotation = orthogonal(_random(width, width, seed=seed))
    weight, gram = _random(out, width, seed=seed + 1), _gram(width, seed + 2)
    assert float(InputTerm(weight, gram).entropy(rotation)) == pytest.approx(
        input_entropy(weight, gram, rotation), rel=1e-9
    )
    squares = _random(out, seed=seed + 3).square()
    assert float(OutputTerm(weight.T, squares).entropy(rotation)) == pytest.approx(
        output_entropy(weight.T, squares, rotation), rel=1e-9
    )


@pytest.mark.parametrize("kind", [InputTerm, OutputTerm])
def test_the_gradient_is_that_of_the_objective(kind: type[InputTerm] | type[OutputTerm]) -> None:
    """Through QR and all, by finite differences."""
    term = (
        InputTerm(_random(5, WIDTH), _gram(WIDTH, 3))
        if kind is InputTerm
        else OutputTerm(_random(WIDTH, 5), _gram(WIDTH, 3).diagonal()[:5])
    )
    free = torch.eye(WIDTH, dtype=torch.float64) + 0.3 * _random(WIDTH, WIDTH, seed=9)
    assert torch.autograd.gradcheck(lambda a: term.entropy(orthogonal(a)), free.requires_grad_())


@given(st.integers(1, 8), st.integers(0, 100))
def test_orthogonal_is_the_q_with_a_positive_diagonal(width: int, seed: int) -> None:
    free = _random(width, width, seed=seed)
    q = orthogonal(free)
    r = q.T @ free
    assert torch.allclose(q.T @ q, torch.eye(width, dtype=q.dtype), atol=1e-12)
    assert torch.allclose(r, r.triu(), atol=1e-10) and bool((r.diagonal() > 0).all())
    assert torch.equal(orthogonal(torch.eye(width)), torch.eye(width))


def test_what_never_fires_counts_nothing() -> None:
    importance = torch.zeros(3, 4, requires_grad=True)
    value = entropy(importance, dim=1)
    value.backward()
    assert value == 0 and importance.grad is not None and bool(torch.isfinite(importance.grad).all())


def test_entropy_falls_and_the_result_is_orthogonal() -> None:
    learned = _learn()
    matrix = learned.matrix
    assert torch.allclose(matrix.T @ matrix, torch.eye(WIDTH, dtype=torch.float64), atol=1e-12)
    everything = [term for index in range(4) for term in _terms(index)]
    before = sum(float(term.entropy(torch.eye(WIDTH))) for term in everything)
    after = sum(float(term.entropy(matrix.float())) for term in everything)
    assert after < 0.9 * before
    assert len(learned.entropies) == 60 and min(learned.entropies[-5:]) < min(learned.entropies[:5])


def test_one_seed_one_rotation() -> None:
    assert torch.equal(_learn().matrix, _learn().matrix)
    assert not torch.equal(_learn().matrix, _learn(seed=1).matrix)


def test_no_step_is_no_rotation() -> None:
    assert torch.equal(_learn(steps=0).matrix, torch.eye(WIDTH, dtype=torch.float64))


def test_every_step_is_told() -> None:
    seen: list[int] = []
    learn_rotation(WIDTH, 4, _terms, Schedule(3, 0.01, 1), torch.Generator(), seen.append)
    assert seen == [0, 1, 2]


def test_numbers_that_went_bad_are_named() -> None:
    bad = InputTerm(torch.full((2, 3), float("nan")), torch.eye(3))
    with pytest.raises(NumericsError, match=r"one of blocks \[0\] is not finite"):
        learn_rotation(3, 1, lambda _: [bad], Schedule(steps=1), torch.Generator())
