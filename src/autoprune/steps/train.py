"""Training of kept weights, for the steps that do it: Adam, the best values on held-out samples are the outcome."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from autoprune.core.masked_adam import Best, MaskedAdam, Schedule
from autoprune.steps.base import Training

HELD_OUT = 0.1  # share of the samples that judge
LOOKS = 8  # how often they do


def train(training: Training, rate: float, steps: int, name: str) -> Best:
    """``steps`` steps of Adam whose rate rises to ``rate`` and falls to zero; ``name`` is told to whoever watches.

    What comes out is never worse than what went in, by the loss on the held-out samples.
    """
    masters = {name: value.float().clone() for name, value in training.values.items()}
    adam, schedule = MaskedAdam(masters, training.patterns), Schedule(rate, steps)
    best = Best(training.judge(masters), masters)
    look = max(1, steps // LOOKS)
    for step, i in enumerate(_shuffled(training.fitted, steps)):
        adam.step(training.gradients(masters, i), schedule.rate(step))
        training.progress(f"{name}, rate {rate:g}", step + 1, steps)
        if (step + 1) % look == 0 or step + 1 == steps:
            best.offer(training.judge(masters), masters)
    return best


def _shuffled(batches: range, steps: int) -> Iterator[int]:
    """Numbers of micro-batches, every epoch in another order, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    taken = 0
    while taken < steps:
        order: Tensor = torch.randperm(len(batches), generator=generator)
        for place in order[: steps - taken].tolist():
            yield batches[place]
        taken += len(batches)
