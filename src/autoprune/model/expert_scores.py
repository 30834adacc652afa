"""What every expert of a block adds for the tokens that are sent to it: REAP's score, and its load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from autoprune.core.shrinking import expert_score
from autoprune.errors import ModelError
from autoprune.model.experts import fused_experts


@dataclass
class ExpertScores:
    """Sums over the tokens that a block's experts were given so far."""

    sums: list[float] = field(default_factory=list)  # of gate(x) ||f(x)||
    tokens: list[int] = field(default_factory=list)

    @property
    def reap(self) -> list[float]:
        """The mean of ``gate(x) ||f(x)||`` over an expert's tokens; 0 for one that saw none."""
        return [total / max(1, count) for total, count in zip(self.sums, self.tokens, strict=True)]

    @property
    def load(self) -> list[float]:
        """How many tokens each one saw."""
        return [float(count) for count in self.tokens]


def experts_of(block: nn.Module) -> nn.Module | None:
    """The part of a block that holds its experts; None if it has none, or more than one such part."""
    found = [module for module in block.modules() if fused_experts("", module)]
    return found[0] if len(found) == 1 else None


@contextmanager
def scoring(name: str, experts: nn.Module, count: int) -> Iterator[ExpertScores]:
    """While it lasts, runs of the block add to the scores.

    Raises: ModelError from such a run if the experts are not called with hidden states, experts' numbers and gates.
    """
    found = ExpertScores([0.0] * count, [0] * count)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        numbers = [value for value in given if value.dim() == 2 and not value.is_floating_point()]
        gates = [v for v in given if numbers and v.shape == numbers[0].shape and v.is_floating_point()]
        hidden = [v for v in given if v.is_floating_point() and not any(v is gate for gate in gates)]
        if not (len(numbers) == len(gates) == len(hidden) == 1):
            raise ModelError(
                f"{name} calls its experts ({type(module).__name__}) in a way in which nobody can see what each one"
                " adds; its experts can't be made fewer"
            )
        _add(found, module, hidden[0].flatten(0, -2), numbers[0], gates[0])

    handle = experts.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def _add(
    found: ExpertScores,
    module: nn.Module,
    hidden: Float[Tensor, "tokens width"],
    numbers: Int[Tensor, "tokens chosen"],
    gates: Float[Tensor, "tokens chosen"],
) -> None:
    for expert in range(len(found.sums)):
        rows, places = (numbers == expert).nonzero(as_tuple=True)
        if len(rows):
            one = torch.full((len(rows), 1), expert, dtype=numbers.dtype, device=numbers.device)
            outputs = module.forward(hidden[rows], one, torch.ones_like(one, dtype=gates.dtype))
            found.sums[expert] += expert_score(gates[rows, places], outputs)
            found.tokens[expert] += len(rows)
