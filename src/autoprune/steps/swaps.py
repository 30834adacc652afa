"""Exchanges of one pruned for one kept weight, each the best for the row's output error (arXiv 2512.10922)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.selection import keep_highest
from autoprune.core.sparsity import SemiStructured, Unstructured
from autoprune.core.statistics import InputGram
from autoprune.core.swaps import swap
from autoprune.steps.base import LayerStep, Needs
from autoprune.steps.options import SwapsOptions


@dataclass(frozen=True)
class Swaps(SwapsOptions, LayerStep):
    """``dE(i, j) = a_i + b_j - 2 w_i w_j G_ij`` for growing i and dropping j; kept weights have their dense values."""

    name: ClassVar[str] = "swaps"
    title: ClassVar[str] = "Swaps"
    needs: ClassVar[Needs] = Needs(statistic=InputGram)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Rows are independent; with N:M only weights of one group are exchanged."""
        solutions = []
        for p in problems:
            assert isinstance(p.statistic, InputGram) and p.dense is not None and p.keep is not None
            weight, gram = p.dense.float(), p.statistic.gram
            target = (
                p.target if isinstance(p.target, SemiStructured) else Unstructured(1 - float(p.keep.float().mean()))
            )
            found = swap(
                weight,
                p.keep,
                gram,
                target,
                limit=self.swap_limit,
                candidates=self.swap_candidates,
                protect=self._protected(weight, p.keep, gram),
            )
            notes = {
                "swaps": int(found.swaps.sum()),
                "row_error": float(found.error_after.sum() / found.error_before.sum().clamp(min=1e-30)),
            }
            solutions.append(LayerSolution(p.name, found.keep, None, notes))
        return solutions

    def _protected(self, weight: Tensor, keep: Tensor, gram: Tensor) -> Bool[Tensor, "out in"] | None:
        """The largest of the kept weights by Wanda's score, which no exchange may drop."""
        if not self.swap_protect:
            return None
        scores = torch.where(keep, weight.abs() * gram.diagonal().sqrt(), -1.0)
        protected = round(self.swap_protect * int(keep.sum(1).min()))
        return keep_highest(scores, scores.shape[1] - protected) if protected else torch.zeros_like(keep)
