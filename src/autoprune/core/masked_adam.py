"""Training the weights that survived: Adam that never moves a pruned weight, its rate, and the best values so far.

Adam is Kingma and Ba's (arXiv 1412.6980) without weight decay. Values, moments and arithmetic are float32, whatever
the model computes in: steps of a rate of 1e-4 would be lost in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Values = Mapping[str, Float[Tensor, "..."]]
"""By name, in any shape: weights ``[out, in]``, norms and biases ``[width]``."""

Patterns = Mapping[str, Bool[Tensor, "..."]]
"""By name: True where a value is kept."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: up from zero over the first ``warmup`` share, then linearly down to zero."""

    peak: float
    steps: int
    warmup: float = 0.1

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0; ``peak`` is reached once, and neither end is zero."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.peak * (step + 1) / rising
        return self.peak * (self.steps - step) / (self.steps - rising + 1)


class MaskedAdam:
    """Adam over ``masters``, which it changes in place; a weight that is not kept is zero and stays so.

    ``keep`` has the pattern of those masters that have one, in their shape; the others are trained whole. Equal calls
    give equal bits on the same machine.
    Raises: ValueError for masters that are not float32, or a pattern without its master or in another shape.
    """

    def __init__(
        self,
        masters: Values,
        keep: Patterns,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        for name, master in masters.items():
            if master.dtype is not torch.float32:
                raise ValueError(f"{name} is {master.dtype}; masters are float32")
        for name, pattern in keep.items():
            if name not in masters or masters[name].shape != pattern.shape:
                raise ValueError(f"{name}: the pattern {tuple(pattern.shape)} has no master of its shape")
        self.masters = {name: master.detach() for name, master in masters.items()}
        # A product with float32 is three times as fast on a CPU as one with booleans, and it is taken at every step.
        self._kept = {name: pattern.to(torch.float32) for name, pattern in keep.items()}
        for name, kept in self._kept.items():
            self.masters[name].mul_(kept)
        # The fused step reads and writes every value once; plain tensor arithmetic would take several times as long.
        # One for each master: so no more than one float32 gradient is there at a time.
        self._adam = {
            name: torch.optim.Adam([master], lr=0.0, betas=betas, eps=epsilon, fused=True)
            for name, master in self.masters.items()
        }

    def step(self, gradients: Values, rate: float) -> None:
        """One step of ``rate``. ``gradients`` has one for every master, in its shape and any precision.

        Gradients that are not finite spoil the masters: who trains looks at the loss, and keeps the `Best`.
        """
        for name, adam in self._adam.items():
            master, gradient = self.masters[name], gradients[name].to(torch.float32)
            master.grad = gradient * self._kept[name] if name in self._kept else gradient
            adam.param_groups[0]["lr"] = rate
            adam.step()
            master.grad = None


class Best:
    """The best values seen by a loss on samples that are not trained on; those before training are the first.

    So the outcome is never worse than the input by that loss: if nothing got better, nothing changes.
    """

    def __init__(self, loss: float, masters: Values) -> None:
        self.first = self.loss = loss
        self.values = {name: master.detach().clone() for name, master in masters.items()}

    @property
    def improved(self) -> bool:
        """Whether any values were better than the first."""
        return self.loss < self.first

    def offer(self, loss: float, masters: Values) -> bool:
        """Keeps a copy of ``masters`` if ``loss`` is lower than all before; a loss that is not a number is not."""
        if not loss < self.loss:
            return False
        self.loss = loss
        for name, kept in self.values.items():
            kept.copy_(masters[name].detach())
        return True
