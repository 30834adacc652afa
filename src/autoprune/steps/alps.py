"""ALPS (arXiv 2406.07831): the pattern by ADMM on the layer's output error, then least squares on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autoprune.core.alps import alps
from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.spectrum import spectrum
from autoprune.core.statistics import InputGram
from autoprune.steps.base import LayerStep, Needs
from autoprune.steps.options import ALPSOptions
from autoprune.steps.price import FLOAT, Price, Shape, layer_price


@dataclass(frozen=True)
class ALPS(ALPSOptions, LayerStep):
    """``min tr((B - W) H (B - W)^T)`` over all B with the target's zeros, H the damped Gram."""

    name: ClassVar[str] = "alps"
    title: ClassVar[str] = "ALPS"
    needs: ClassVar[Needs] = Needs(statistic=InputGram)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Layers of one input group share the decomposition of their Gram."""
        statistic = problems[0].statistic
        assert isinstance(statistic, InputGram)
        shared = spectrum(statistic.gram, self.alps_damping)
        solutions = []
        for p in problems:
            assert p.target is not None
            found = alps(p.weight.float(), shared, p.target, per_row=self.alps_compare == "row")
            notes = {"iterations": found.iterations, "rho": found.rho, "starts": found.starts}
            solutions.append(LayerSolution(p.name, found.keep, found.weight, notes))
        return solutions

    def price(self, shape: Shape) -> Price:
        """The decomposition is in double precision; some 60 iterations of two products for every layer."""
        price = layer_price(shape, gram=True)
        work = FLOAT * (6 * shape.gram + 8 * shape.layer)
        return Price(work=work, new_weights=True, flops=price.flops + 60 * 2.0 * shape.sweeps)
