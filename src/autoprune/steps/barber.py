"""LLM-Barber (arXiv 2408.10631): rebuild the keep pattern of a pruned model, sub-block by sub-block."""

from __future__ import annotations

import math
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
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.steps.base import Block, Needs, Step
from autoprune.steps.options import BarberOptions
from autoprune.steps.price import FLOAT, Price, Shape

FEW = 0.1  # of the share of inverted pairs that was asked for
SETS = {"block": "sub-block", "layer": "layer", "output1": "row", "input1": "column"}  # of scores that are compared


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
                "sets": result.sets[i],
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

    def remarks(self, layers: Sequence[LayerOutcome], sub_blocks: Sequence[SubBlockOutcome]) -> list[str]:
        """Says so if hardly anything was exchanged, and from which threshold on more would be."""
        notes = [layer.notes for layer in layers if "sets" in layer.notes]
        compared, inverted, exchanged = (
            sum(getattr(sub, what) for sub in sub_blocks) for what in ("compared", "inverted", "exchanged")
        )
        if not compared or exchanged > FEW * self.threshold * inverted:
            return []
        if not inverted:
            return [f"{self.title} exchanged nothing: of {compared:,} compared pairs none is inverted"]
        mean = sum(note["inverted"] for note in notes) / sum(note["sets"] for note in notes)
        what = SETS[self.prune_granularity]
        return [
            f"{self.title} exchanged {exchanged:,} of {inverted:,} inverted pairs: --threshold {self.threshold:g} of"
            f" every {what} is rounded down, and a {what} that has any has {mean:.1f} of them on average; --threshold"
            f" {enough(mean):g} would exchange {'more' if exchanged else 'some'}"
        ]

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


def enough(mean: float) -> float:
    """The least threshold of two digits by which a set of ``mean`` inverted pairs, at least 1, exchanges one: then the
    fullest set does.
    """
    digits = 1 - math.floor(math.log10(1 / mean))
    return round(math.ceil(round(10**digits / mean, 6)) / 10**digits, digits)
