"""SparseGPT (arXiv 2301.00774): prune column by column, and let the remaining weights make up for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from autoprune.core.curvature import inverse_factor
from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.reconstruction import sweep
from autoprune.core.statistics import InputGram
from autoprune.steps.base import LayerStep, Needs
from autoprune.steps.options import SparseGPTOptions


@dataclass(frozen=True)
class SparseGPT(SparseGPTOptions, LayerStep):
    """``score = w^2 / U_jj^2`` with U the Cholesky factor of the inverse Hessian; kept weights change."""

    name: ClassVar[str] = "sparsegpt"
    title: ClassVar[str] = "SparseGPT"
    needs: ClassVar[Needs] = Needs(statistic=InputGram)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Layers of one input group share the factorisation and are swept together."""
        statistic = problems[0].statistic
        assert isinstance(statistic, InputGram)
        curvature = inverse_factor(statistic.gram, self.damping)
        took = {"damping": curvature.damping, "precision": curvature.precision, "attempts": curvature.attempts}
        notes = {**took, "dead_inputs": int(curvature.dead.sum())}
        solutions: dict[str, LayerSolution] = {}
        for target in dict.fromkeys(p.target for p in problems if p.target):
            same = [p for p in problems if p.target == target]
            rows = [p.weight.shape[0] for p in same]
            weights = torch.cat([p.weight.float() for p in same])
            weight, keep = sweep(weights, curvature, target, self.column_block, rows)
            for p, w, k in zip(same, weight.split(rows), keep.split(rows), strict=True):
                solutions[p.name] = LayerSolution(p.name, k, w, dict(notes))
        return [solutions[p.name] for p in problems if p.name in solutions]
