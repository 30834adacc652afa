"""Orthogonal rotations between an attention's values and its output projection, one for each head of the values.

What attention does to values is a weighted sum over tokens, which commutes with any matrix on their channels: with
``V`` turned to ``R^T V`` and ``O`` to ``O R`` nothing else changes. The objective is that of ``core/rotation.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.rotation import BETAS, EPSILON, entropy, orthogonal
from autoprune.errors import NumericsError


@dataclass(frozen=True)
class HeadTerm:
    """The two layers of one attention, by heads of the values and the query heads that share each of them."""

    values: Float[Tensor, "heads head in"]  # the value layer's rows
    squares: Float[Tensor, " in"]  # diagonal of the Gram of what enters it
    outputs: Float[Tensor, "out heads group head"]  # the output projection's columns
    grams: Float[Tensor, "heads group head head"]  # of what enters it, within each query head

    def entropy(self, rotations: Float[Tensor, "heads head head"]) -> Float[Tensor, ""]:
        """In nats: of the value layer's columns within each head, and of the output projection's rows over all heads.

        The importance is Wanda's score, squared: ``(R^T V)^2 * diag G`` and ``(O R)^2 * diag(R^T G R)``.
        """
        values = (rotations.mT @ self.values).square() * self.squares
        energies = ((self.grams @ rotations[:, None]) * rotations[:, None]).sum(-2)  # heads, group, head
        outputs = (self.outputs @ rotations).square() * energies
        return entropy(values, dim=1) + entropy(outputs.flatten(1), dim=1)


@dataclass(frozen=True)
class LearnedHeads:
    """One rotation for each head of the values, and the entropy without and with them."""

    matrices: Float[Tensor, "heads head head"]  # orthogonal to float64's rounding
    before: float  # nats
    after: float


def learn_heads(term: HeadTerm, steps: int, rate: float, tick: Callable[[], None] = lambda: None) -> LearnedHeads:
    """The rotations that lower the entropy of ``term``; Adam from the identity, as for the hidden states.

    They are kept and orthogonalised in float64; the entropy has the term's precision. If it does not fall, they are
    the identity. ``tick()`` is called after every step. The same term gives the same bits.

    Raises: NumericsError if weights or Grams are not finite.
    """
    heads, head = term.values.shape[:2]
    still = torch.eye(head, dtype=torch.float64, device=term.values.device).repeat(heads, 1, 1)
    free = still.clone().requires_grad_()
    adam = torch.optim.Adam([free], lr=rate, betas=BETAS, eps=EPSILON)
    for _ in range(steps):
        adam.zero_grad()
        loss = term.entropy(orthogonal(free).to(term.values))
        if not bool(torch.isfinite(loss)):
            raise NumericsError(
                "the importance of an attention's weights is not finite, so no rotation can be learned"
            )
        loss.backward()
        adam.step()
        tick()
    learned = orthogonal(free.detach())
    before, after = (float(term.entropy(matrices.to(term.values))) for matrices in (still, learned))
    return LearnedHeads(learned, before, after) if after < before else LearnedHeads(still, before, before)
