"""RIA (Plug-and-Play, ICLR 2024): weights that matter little to their row, their column and their input go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.saliency import ria_score
from autoprune.core.selection import keep_for
from autoprune.core.statistics import InputNorm
from autoprune.steps.base import LayerStep, Needs
from autoprune.steps.options import RIAOptions


@dataclass(frozen=True)
class RIA(RIAOptions, LayerStep):
    """``score = (|W| / column sum + |W| / row sum) * ||x||_2 ** power``, over the layer, or inside each group of M."""

    name: ClassVar[str] = "ria"
    title: ClassVar[str] = "RIA"
    needs: ClassVar[Needs] = Needs(statistic=InputNorm)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Needs the norm of every input feature."""
        solutions = []
        for p in problems:
            assert isinstance(p.statistic, InputNorm) and p.target is not None
            score = ria_score(p.weight, p.statistic.norm, self.ria_power)
            solutions.append(LayerSolution(p.name, keep_for(score, p.target, per_row=False)))
        return solutions
