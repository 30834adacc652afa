"""How long a run will roughly take: arithmetic by its steps' prices, over a speed measured here."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from autoprune.core.statistics import CrossGram
from autoprune.model.pruning import kinds_of, split_passes
from autoprune.steps.base import Step
from autoprune.steps.price import Shape


def arithmetic(shape: Shape, steps: Sequence[Step]) -> float:
    """Floating-point operations of the steps on ``shape.samples`` windows of ``shape.tokens``."""
    forward = 2.0 * shape.parameters * shape.samples * shape.tokens
    return forwards(shape, steps) * forward + sum(step.price(shape).flops for step in steps)


def forwards(shape: Shape, steps: Sequence[Step]) -> float:
    """Forward passes of all samples through all blocks, a backward one counting twice."""
    count = float(any(step.needs.dense_stream for step in steps)) + sum(2.0 * step.needs.survey for step in steps)
    for group in split_passes(steps):
        kinds, held_out = kinds_of(group), max(step.needs.held_out for step in group)
        count += (bool(kinds) + 2.0 * (CrossGram in kinds)) * (1 - held_out)
        # Behind the pass its blocks' outputs are taken, unless the last step leaves them.
        count += any(step.needs.samples for step in group) and not group[-1].needs.own_stream
    return count + sum(step.price(shape).forwards for step in steps)


def flops_per_second(device: torch.device) -> float:
    """What the device multiplies in float32, by a short trial."""
    a = torch.rand(512, 512, device=device)
    best = 1.0
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a).sum())
        best = max(best, 2 * 512**3 / (time.perf_counter() - start))
    return best


def clock(seconds: float) -> str:
    """A rough time for people."""
    if seconds < 60:
        return "under a minute"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h" if seconds < 172800 else f"about {seconds / 86400:.0f} days"
