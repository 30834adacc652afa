"""LLM-Barber (arXiv 2408.10631): rebuild the keep pattern of a pruned model, sub-block by sub-block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.exchange import exchange
from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.statistics import GradientEnergy
from autoprune.errors import RecipeError
from autoprune.steps.base import Block, Needs, Step
from autoprune.steps.options import BarberOptions
from autoprune.steps.price import FLOAT, Price, Shape


@dataclass(frozen=True)
class Barber(BarberOptions, Step):
    """``score = |W*| * sqrt(mean_j (dL_j/dW)^2)``;
    L_j is the sub-block's mean squared output error on sample j."""

    name: ClassVar[str] = "barber"
    title: ClassVar[str] = "LLM-Barber"
    needs: ClassVar[Needs] = Needs(gradients=True, own_stream=True)

    def apply(self, block: Block) -> None:
        """Sub-block by sub-block, each behind the rebuilt ones before it."""
        for part in block.parts(self.compute_dtype):
            part.solve(self.solve, together=self.prune_granularity == "block")

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Exchanges pruned for kept weights; all layers of the sub-block come together, for `block` compares them."""
        if self.prune_granularity == "block":
            return self._exchange(problems)
        return [solution for problem in problems for solution in self._exchange([problem])]

    def _exchange(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
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
            weight = value if self.retain_reconstruction else None
            solutions.append(LayerSolution(problem.name, result.keep[i], weight, notes))
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

    def check_machine(self, device: str, processes: int) -> None:
        """Raises: RecipeError for TF32 where there is none."""
        super().check_machine(device, processes)
        if self.compute_dtype == "tf32" and device != "cuda":
            raise RecipeError(
                f"--compute_dtype tf32 is a mode of CUDA devices, and blocks run on {device}; choose float32 or"
                " bfloat16"
            )

    def price(self, shape: Shape) -> Price:
        """A sub-block's energies, and beside them the more of two: its gradients, or the exchange.

        Gradients take its weights in the precision that they are computed in: dense and pruned, or dense with one
        layer's gradient, twice, and the activations. The exchange takes copies of all scores that are compared.
        """
        computing = 2 if self.compute_dtype == "bfloat16" else FLOAT
        cast = shape.sub_block * computing if shape.running != computing or shape.copies > 2 else 0
        activations = shape.forward(computing)
        gradients = cast + max(cast + activations // 2, 2 * shape.layer * FLOAT + activations)
        gradients += cast if shape.copies > 2 else 0
        compared = shape.sub_block if self.prune_granularity == "block" else shape.layer
        work = shape.sub_block * FLOAT + max(gradients, compared * FLOAT * 6)
        return Price(work=work, outputs=shape.sub_blocks, forwards=5.0)
