"""LLM-Barber (arXiv 2408.10631): rebuild the keep pattern of a pruned model, sub-block by sub-block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.exchange import exchange
from autoprune.core.problem import LayerProblem, LayerSolution, Scope
from autoprune.core.statistics import GradientEnergy
from autoprune.recipe.recipe import BarberOptions


@dataclass(frozen=True)
class Barber(BarberOptions):
    """``score = |W*| * sqrt(mean_j (dL_j/dW)^2)``;
    L_j is the sub-block's mean squared output error on sample j."""

    statistic: ClassVar[type[GradientEnergy]] = GradientEnergy
    scope: ClassVar[Scope] = Scope.SUB_BLOCK

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Exchanges pruned for kept weights; all layers of the sub-block come together, for `block` compares them."""
        if self.prune_granularity == "block":
            return self._solve_together(problems)
        return [solution for problem in problems for solution in self._solve_together([problem])]

    def _solve_together(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """The layers whose scores may be compared with each other."""
        values = [self.values(p) for p in problems]
        scores = [self.score(p, value) for p, value in zip(problems, values, strict=True)]
        patterns = [p.keep for p in problems if p.keep is not None]
        result = exchange(scores, patterns, self.prune_granularity, self.threshold, problems[0].target)
        solutions = []
        for i, (problem, value) in enumerate(zip(problems, values, strict=True)):
            notes = {
                "compared": result.compared[i],
                "inverted": result.inverted[i],
                "grown": result.grown[i],
                "dropped": result.dropped[i],
            }
            solutions.append(
                LayerSolution(problem.name, result.keep[i], value if self.retain_reconstruction else None, notes)
            )
        return solutions

    def values(self, problem: LayerProblem) -> Float[Tensor, "out in"]:
        """W*: the dense weights, or with ``retain_reconstruction`` the pruned model's where they are not zero."""
        assert problem.dense is not None
        if self.retain_reconstruction:
            return torch.where(problem.weight != 0, problem.weight, problem.dense)
        return problem.dense

    def score(self, problem: LayerProblem, value: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Importance of every weight, by ``prune_metric``."""
        assert isinstance(problem.statistic, GradientEnergy)
        if self.prune_metric == "W":
            return value.float().abs()
        if self.prune_metric == "D":
            return problem.statistic.rms
        return value.abs() * problem.statistic.rms
