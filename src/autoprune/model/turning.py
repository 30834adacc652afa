"""Small tests by numbers: what is a multiple of what, and whether a norm is one that a rotation passes through."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from autoprune.core.rotation import orthogonal
from autoprune.errors import ModelError

TOLERANCE = 1e-4  # relative; many norms compute in float32, whatever they are given
NOTHING = 1e-6  # a change below it, relative to its cause, is none


def neutral_weight(norm: nn.Module, called: str, like: Tensor) -> float | None:
    """The weight with which an RMSNorm scales by one: 1, or 0 where it adds one itself; None if it has no weight.

    Raises: ModelError if it does anything but divide by the length and multiply by a weight.
    """
    norm = copy.deepcopy(norm).double()
    x = noise(5, (16, like.shape[-1]), like.device)
    rotation = orthogonal(noise(6, (like.shape[-1],) * 2, like.device))
    weight = norm._parameters.get("weight")
    neutral = None
    if weight is not None:
        given, own = norm(x), weight.data.clone()
        weight.data.zero_()
        neutral = 0.0 if norm(x).any() else 1.0
        weight.data.fill_(neutral)
        scaled = norm(x) * (own + 1 - neutral)
    if torch.allclose(norm(x + 1), norm(x), rtol=TOLERANCE, atol=TOLERANCE):
        raise refusal(
            f"{called} ({type(norm).__name__}) takes away the mean, which a rotation moves; an RMSNorm does not"
        )
    if not torch.allclose(norm(x @ rotation), norm(x) @ rotation, rtol=TOLERANCE, atol=TOLERANCE):
        raise refusal(f"{called} ({type(norm).__name__}) does not turn as hidden states do: it is no RMSNorm")
    if weight is not None and not torch.allclose(scaled, given, rtol=TOLERANCE, atol=TOLERANCE):
        raise refusal(
            f"{called} ({type(norm).__name__}) does more than divide by the length and multiply by its weight"
        )
    return neutral


def along(change: Tensor, cause: Tensor) -> bool:
    """Whether the change is the cause, times a number for every token."""
    if change.numel() != cause.numel() or not change.norm() > NOTHING * cause.norm():
        return False
    change = change.reshape(cause.shape)
    factor = (change * cause).sum(-1, keepdim=True) / cause.square().sum(-1, keepdim=True)
    return bool((change - factor * cause).norm() <= TOLERANCE * change.norm())


def rows_of(rows: Tensor, whole: Tensor) -> bool:
    """Whether every row is a multiple of some row of the whole."""
    if rows.shape[-1] != whole.shape[-1]:
        return False
    rows, whole = (nn.functional.normalize(x.flatten(0, -2), dim=-1) for x in (rows, whole))
    return bool(((rows @ whole.T).abs().amax(-1) > 1 - TOLERANCE**2).all())


def noise(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Normal numbers in float64, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def refusal(reason: str) -> ModelError:
    """The error of a model whose residual stream can't be rotated."""
    return ModelError(f"the hidden states of this model can't be rotated: {reason}; leave the rotation out")
