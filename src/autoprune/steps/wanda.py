"""Wanda (arXiv 2306.11695): weights that are small, or whose input is quiet, go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.selection import keep_for
from autoprune.core.statistics import InputNorm
from autoprune.steps.base import LayerStep, Needs


@dataclass(frozen=True)
class Wanda(LayerStep):
    """``score = |W| * ||x||_2`` (eq. 1), compared inside each output row, or inside each group of M."""

    name: ClassVar[str] = "wanda"
    title: ClassVar[str] = "Wanda"
    needs: ClassVar[Needs] = Needs(statistic=InputNorm)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Needs the norm of every input feature."""
        return [LayerSolution(p.name, keep_for(self.score(p), p.target, per_row=True)) for p in problems if p.target]

    def score(self, problem: LayerProblem) -> Float[Tensor, "out in"]:
        """Importance of every weight."""
        assert isinstance(problem.statistic, InputNorm)
        return problem.weight.abs() * problem.statistic.norm
