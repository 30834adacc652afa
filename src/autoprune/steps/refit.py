"""Least squares on the kept weights (ALPS, arXiv 2406.07831, section 3.3): they make up for those that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.refit import refit
from autoprune.core.statistics import InputGram
from autoprune.steps.base import LayerStep, Needs
from autoprune.steps.options import RefitOptions


@dataclass(frozen=True)
class Refit(RefitOptions, LayerStep):
    """Per row ``min (w - w0)^T (G + lambda I) (w - w0)`` with ``w = 0`` where pruned; the pattern stays."""

    name: ClassVar[str] = "refit"
    title: ClassVar[str] = "Refit"
    needs: ClassVar[Needs] = Needs(statistic=InputGram)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Each layer by itself; w0 is the dense weight, whatever earlier steps did to the kept ones."""
        solutions = []
        for p in problems:
            assert isinstance(p.statistic, InputGram) and p.dense is not None and p.keep is not None
            weight = refit(
                p.dense.float(),
                p.keep,
                p.statistic.gram,
                damping=self.refit_damping,
                iterations=self.refit_iterations,
            )
            solutions.append(LayerSolution(p.name, p.keep, weight))
        return solutions
