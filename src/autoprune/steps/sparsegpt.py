"""SparseGPT (arXiv 2301.00774): prune column by column, and let the remaining weights make up for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from autoprune.core.curvature import inverse_factor
from autoprune.core.problem import LayerProblem, LayerSolution, Scope
from autoprune.core.reconstruction import sweep
from autoprune.core.statistics import InputGram
from autoprune.recipe.recipe import SparseGPTOptions


@dataclass(frozen=True)
class SparseGPT(SparseGPTOptions):
    """``score = w^2 / U_jj^2`` with U the Cholesky factor of the inverse Hessian; kept weights change."""

    statistic: ClassVar[type[InputGram]] = InputGram
    scope: ClassVar[Scope] = Scope.INPUT_GROUP

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Layers of one input group share the factorisation and are swept together."""
        first = problems[0]
        assert isinstance(first.statistic, InputGram) and first.target is not None
        curvature = inverse_factor(first.statistic.gram, self.damping)
        rows = [p.weight.shape[0] for p in problems]
        weight, keep = sweep(
            torch.cat([p.weight.float() for p in problems]), curvature, first.target, self.column_block, rows
        )
        took = {"damping": curvature.damping, "precision": curvature.precision, "attempts": curvature.attempts}
        notes = {**took, "dead_inputs": int(curvature.dead.sum())}
        parts = zip(problems, weight.split(rows), keep.split(rows), strict=True)
        return [LayerSolution(p.name, k, w, dict(notes)) for p, w, k in parts]
