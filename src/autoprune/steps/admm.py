"""Gradual ADMM (arXiv 2401.02938): pattern and weights together in 20 iterations, growing sparser as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autoprune.core.admm import admm, admm_curvature
from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.statistics import InputGram
from autoprune.steps.base import LayerStep, Needs
from autoprune.steps.options import ADMMOptions
from autoprune.steps.price import Price, Shape, layer_price


@dataclass(frozen=True)
class ADMM(ADMMOptions, LayerStep):
    """``W' = (W X + Z - U)(X + I)^-1`` with X the scaled Gram, Z the kept part of ``W' + U``, U the multiplier."""

    name: ClassVar[str] = "admm"
    title: ClassVar[str] = "ADMM"
    needs: ClassVar[Needs] = Needs(statistic=InputGram)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Layers of one input group share the inverse."""
        statistic = problems[0].statistic
        assert isinstance(statistic, InputGram)
        curvature = admm_curvature(statistic.gram, self.admm_damping)
        solutions = []
        for p in problems:
            assert p.target is not None
            weight, keep = admm(p.weight.float(), curvature, p.target)
            solutions.append(LayerSolution(p.name, keep, weight))
        return solutions

    def price(self, shape: Shape) -> Price:
        """Twenty products for every layer."""
        price = layer_price(shape, gram=True)
        return Price(work=price.work, new_weights=True, flops=price.flops + 20 * 2.0 * shape.sweeps)
