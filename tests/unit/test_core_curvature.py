"""The factor of the inverse Hessian: right where it is easy, honest about what it took where it is hard."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.sparsegpt import damped
from torch import Tensor

from autoprune.core.curvature import Curvature, inverse_factor
from autoprune.errors import NumericsError


def _gram(features: int, tokens: int, seed: int = 0) -> Tensor:
    x = torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed))
    return x.T @ x


def _is_factor_of_inverse(curvature: Curvature, gram: Tensor, *, rtol: float = 1e-3) -> None:
    wanted = torch.linalg.inv(damped(gram, curvature.damping))
    upper = curvature.upper.double()
    assert torch.equal(upper, upper.triu())
    assert (upper.T @ upper - wanted).norm() <= rtol * wanted.norm()


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 1000))
def test_factor_of_the_inverse(features: int, tokens: int, seed: int) -> None:
    """Also with fewer tokens than features: damping makes a rank-deficient Gram invertible at the first attempt."""
    gram = _gram(features, tokens, seed)
    curvature = inverse_factor(gram, 0.01)
    _is_factor_of_inverse(curvature, gram)
    assert (curvature.attempts, curvature.damping, curvature.precision) == (1, 0.01, "float32")


def test_rank_deficient_gram() -> None:
    gram = _gram(64, 3)
    assert int((torch.linalg.eigvalsh(gram.double()) > 1e-3).sum()) == 3
    curvature = inverse_factor(gram, 0.01)
    assert curvature.attempts == 1
    _is_factor_of_inverse(curvature, gram)


def test_dead_features_get_a_diagonal_of_one_and_stand_alone() -> None:
    gram = _gram(6, 20)
    for j in (0, 4):
        gram[j] = gram[:, j] = 0
    curvature = inverse_factor(gram, 0.01)
    assert curvature.dead.tolist() == [True, False, False, False, True, False]
    _is_factor_of_inverse(curvature, gram)
    assert torch.count_nonzero(curvature.upper[0]) == 1 and torch.count_nonzero(curvature.upper[:, 4]) == 1


def test_all_features_dead() -> None:
    curvature = inverse_factor(torch.zeros(4, 4), 0.01)
    assert bool(curvature.dead.all()) and bool(torch.isfinite(curvature.upper).all())


@pytest.mark.parametrize("outlier", [1e3, 1e6, 1e9])
def test_one_feature_with_huge_outliers(outlier: float) -> None:
    """As in real models, where a few features are thousands of times larger than the rest."""
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    x[:, 3] *= outlier
    gram = x.T @ x
    curvature = inverse_factor(gram, 0.01)
    assert curvature.attempts == 1
    _is_factor_of_inverse(curvature, gram)


def test_damping_escalates_tenfold_and_is_recorded() -> None:
    """Eigenvalue -0.5: damping 0.01 and 0.1 do not reach it, 1.0 does."""
    gram = torch.tensor([[1.0, 1.5], [1.5, 1.0]])
    curvature = inverse_factor(gram, 0.01)
    assert (curvature.attempts, curvature.damping, curvature.precision) == (3, 1.0, "float32")
    _is_factor_of_inverse(curvature, gram)


def test_float64_follows_when_float32_fails() -> None:
    """A shift of 1e-12 disappears beside 1 in float32, not in float64."""
    gram = torch.ones(3, 3)
    curvature = inverse_factor(gram, 1e-12)
    assert curvature.precision == "float64"
    assert curvature.attempts > 4  # all steps in float32 were tried first
    assert curvature.damping == pytest.approx(1e-12 * 10 ** (curvature.attempts - 5))
    assert curvature.upper.dtype == gram.dtype and bool(torch.isfinite(curvature.upper).all())


def test_named_error_when_nothing_helps() -> None:
    gram = torch.tensor([[1.0, 100.0], [100.0, 1.0]])  # not a Gram at all: eigenvalue -99
    with pytest.raises(
        NumericsError, match=r"could not be factorised, even with damping 10 in float64.*--nsamples.*--damping"
    ):
        inverse_factor(gram, 0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gram_is_refused(bad: float) -> None:
    gram = torch.eye(3)
    gram[1, 1] = bad
    with pytest.raises(NumericsError, match=r"not finite.*--dtype float32.*calibration"):
        inverse_factor(gram, 0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_off_the_diagonal_is_refused(bad: float) -> None:
    gram = torch.eye(3)
    gram[0, 2] = gram[2, 0] = bad
    with pytest.raises(NumericsError):
        inverse_factor(gram, 0.01)
