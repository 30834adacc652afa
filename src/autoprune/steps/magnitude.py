"""Magnitude pruning: the smallest weights of a layer go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.selection import keep_for
from autoprune.steps.base import LayerStep


@dataclass(frozen=True)
class Magnitude(LayerStep):
    """``score = |W|``, compared over the whole layer, or inside each group of M."""

    name: ClassVar[str] = "magnitude"
    title: ClassVar[str] = "Magnitude"

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Reads no data."""
        return [
            LayerSolution(p.name, keep_for(p.weight.float().abs(), p.target, per_row=False))
            for p in problems
            if p.target
        ]
