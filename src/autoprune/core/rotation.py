"""One orthogonal rotation of the residual stream that gathers importance in few weights.

After DenoiseRotator (arXiv 2505.23049), which keeps a rotation for every layer and pays for it at run time. Here all
layers share one, which can be folded into the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.errors import NumericsError

_TINY = 1e-30  # a share below it counts as zero, so that its logarithm is finite
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's own


@dataclass(frozen=True)
class InputTerm:
    """Layers that read the residual stream behind one norm, stacked; the norm's weight is folded into ``weight``.

    ``gram`` is that of the normalised stream *before* the norm's weight: what the folded layers are multiplied with.
    """

    weight: Float[Tensor, "out width"]
    gram: Float[Tensor, "width width"]

    def importance(self, rotation: Float[Tensor, "width width"]) -> Float[Tensor, "out width"]:
        """Wanda's score, squared, of the rotated layers: ``(W R)^2 * diag(R^T G R)``."""
        return (self.weight @ rotation).square() * ((self.gram @ rotation) * rotation).sum(0)

    def entropy(self, rotation: Float[Tensor, "width width"]) -> Float[Tensor, ""]:
        """Entropy of every row's importance, in nats, summed over the rows."""
        return entropy(self.importance(rotation), dim=1)


@dataclass(frozen=True)
class OutputTerm:
    """A layer that adds to the residual stream; ``squares`` is the diagonal of the Gram of what enters it."""

    weight: Float[Tensor, "width in"]
    squares: Float[Tensor, " in"]

    def importance(self, rotation: Float[Tensor, "width width"]) -> Float[Tensor, "width in"]:
        """Wanda's score, squared, of the rotated layer: ``(R^T W)^2 * diag G``."""
        return (rotation.T @ self.weight).square() * self.squares

    def entropy(self, rotation: Float[Tensor, "width width"]) -> Float[Tensor, ""]:
        """Entropy of every column's importance, in nats, summed over the columns."""
        return entropy(self.importance(rotation), dim=0)


RotationTerm = InputTerm | OutputTerm


@dataclass(frozen=True)
class Schedule:
    """How a rotation is learned: each step looks at ``blocks`` random blocks, and Adam moves by about ``rate``."""

    steps: int = 100
    rate: float = 0.01
    blocks: int = 3


@dataclass(frozen=True)
class LearnedRotation:
    """The rotation, and the mean entropy of each step's blocks (other ones each time, so it falls unevenly)."""

    matrix: Float[Tensor, "width width"]  # orthogonal to float64's rounding
    entropies: tuple[float, ...]  # nats


def entropy(importance: Float[Tensor, ...], dim: int) -> Float[Tensor, ""]:
    """``sum of -S ln S``, ``S`` being importance over its sum along ``dim``; zeros alone count nothing."""
    shares = importance / importance.sum(dim, keepdim=True).clamp_min(_TINY)
    return -(shares * shares.clamp_min(_TINY).log()).sum()


def orthogonal(free: Float[Tensor, "*many width width"]) -> Float[Tensor, "*many width width"]:
    """The ``Q`` of ``free = Q R`` with a positive diagonal in ``R``: unique; differentiable if ``free`` is regular."""
    q, r = torch.linalg.qr(free)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return q * signs.unsqueeze(-2)


def learn_rotation(
    width: int,
    blocks: int,
    terms: Callable[[int], Sequence[RotationTerm]],
    schedule: Schedule,
    generator: torch.Generator,
    tick: Callable[[int], None] = lambda step: None,
    device: torch.device | str = "cpu",
) -> LearnedRotation:
    """The rotation ``[width, width]`` that lowers the summed entropy of all ``blocks``; it starts from the identity.

    ``terms(index)`` gives what a block's layers look like, in float32; only one block's terms are held at a time.
    ``tick(step)`` is called after every step; ``device`` is where the rotation is kept and orthogonalised, in float64.
    The same generator state gives the same bits.

    Raises: NumericsError if weights or Grams are not finite.
    """
    free = torch.eye(width, dtype=torch.float64, device=device, requires_grad=True)
    adam = torch.optim.Adam([free], lr=schedule.rate, betas=BETAS, eps=EPSILON)
    entropies = []
    for step in range(schedule.steps):
        rotation = orthogonal(free)
        chosen = torch.randperm(blocks, generator=generator)[: schedule.blocks].tolist()
        value, slope = _mean_entropy(rotation.detach(), sorted(chosen), terms)
        entropies.append(value)
        adam.zero_grad()
        rotation.backward(slope)
        adam.step()
        tick(step)
    return LearnedRotation(orthogonal(free.detach()), tuple(entropies))


def _mean_entropy(
    rotation: Float[Tensor, "width width"], chosen: Sequence[int], terms: Callable[[int], Sequence[RotationTerm]]
) -> tuple[float, Float[Tensor, "width width"]]:
    """The chosen blocks' mean entropy and its gradient in the rotation; one block's graph is held at a time."""
    value, slope = 0.0, torch.zeros_like(rotation)
    for index in chosen:
        for term in terms(index):
            leaf = rotation.to(term.weight).requires_grad_()
            loss = term.entropy(leaf) / len(chosen)
            loss.backward()
            value += float(loss.detach())
            slope += leaf.grad.to(slope)  # type: ignore[union-attr]  # backward has just made it
    if not (torch.isfinite(slope).all() and torch.isfinite(torch.tensor(value))):
        raise NumericsError(
            f"the importance of weights in one of blocks {list(chosen)} is not finite, so no rotation can be learned"
        )
    return value, slope
