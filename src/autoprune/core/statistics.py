"""Streaming accumulators of what a layer sees: fed batch by batch, they know no module and no file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class InputNorm:
    """Sum of squares of each input feature over all calibration tokens, in float32."""

    squares: Float[Tensor, " in"]
    tokens: int = 0

    @classmethod
    def empty(cls, features: int, device: torch.device | str = "cpu") -> InputNorm:
        """Nothing seen yet."""
        return cls(torch.zeros(features, dtype=torch.float32, device=device))

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        """Adds a batch of tokens."""
        self.squares += x.float().square().sum(0)
        self.tokens += x.shape[0]

    @property
    def norm(self) -> Float[Tensor, " in"]:
        """The 2-norm of each input feature, ``||x_j||_2`` of Wanda's score."""
        return self.squares.sqrt()


@dataclass
class InputGram:
    """``H = sum x x^T`` over all calibration tokens, in float32: SparseGPT's Hessian up to a constant that cancels."""

    gram: Float[Tensor, "in in"]
    tokens: int = 0

    @classmethod
    def empty(cls, features: int, device: torch.device | str = "cpu") -> InputGram:
        """Nothing seen yet."""
        return cls(torch.zeros(features, features, dtype=torch.float32, device=device))

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        """Adds a batch of tokens."""
        x = x.float()
        self.gram.addmm_(x.T, x)
        self.tokens += x.shape[0]


@dataclass
class CrossGram:
    """``C = sum x_dense x_pruned^T`` over all calibration tokens, in float32: how far the streams agree."""

    cross: Float[Tensor, "in in"]
    tokens: int = 0

    @classmethod
    def empty(cls, features: int, device: torch.device | str = "cpu") -> CrossGram:
        """Nothing seen yet."""
        return cls(torch.zeros(features, features, dtype=torch.float32, device=device))

    def update(self, dense: Float[Tensor, "tokens in"], pruned: Float[Tensor, "tokens in"]) -> None:
        """Adds a batch of tokens: the same ones, as the layer sees them in both streams."""
        self.cross.addmm_(dense.float().T, pruned.float())
        self.tokens += pruned.shape[0]


@dataclass
class GradientEnergy:
    """Sum over samples of the squared weight gradient, ``sum_j (dL_j/dW)^2``, in float32 (LLM-Barber, arXiv
    2408.10631).
    """

    squares: Float[Tensor, "out in"]
    samples: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, int], device: torch.device | str = "cpu") -> GradientEnergy:
        """Nothing seen yet."""
        return cls(torch.zeros(shape, dtype=torch.float32, device=device))

    def update(self, dy: Float[Tensor, "samples tokens out"], x: Float[Tensor, "samples tokens in"]) -> None:
        """Adds a batch of samples: sample j's gradient is ``dY_j^T X_j``, never summed with another's before squaring.

        float16 has too small a range for gradients, so they are formed in float32; bfloat16 has float32's, and what is
        summed up over the tokens is rounded to it once (to 2^-9 of its size).
        """
        if torch.float16 in (dy.dtype, x.dtype):
            dy, x = dy.float(), x.float()
        for dy_j, x_j in zip(dy, x, strict=True):
            gradient = (dy_j.T @ x_j).float()
            self.squares.addcmul_(gradient, gradient)
        self.samples += dy.shape[0]

    @property
    def rms(self) -> Float[Tensor, "out in"]:
        """``sqrt(mean_j G_j^2)``."""
        return (self.squares / self.samples).sqrt()


Statistic = InputNorm | InputGram | CrossGram | GradientEnergy
S = TypeVar("S", bound="InputNorm | InputGram | CrossGram")


def tensors_of(statistic: Statistic) -> list[Tensor]:
    """The tensors in a statistic, every one a sum over what was seen."""
    values = (getattr(statistic, field.name) for field in dataclasses.fields(statistic))
    return [value for value in values if isinstance(value, Tensor)]


def summed(statistics: Sequence[S]) -> S:
    """One statistic of all that several of a kind have seen: their fields are sums, so they add up."""
    first = statistics[0]
    names = [field.name for field in dataclasses.fields(first)]
    return type(first)(*(sum(getattr(statistic, name) for statistic in statistics) for name in names))
