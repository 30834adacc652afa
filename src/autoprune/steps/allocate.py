"""Allocation: blocks that matter more stay denser, and the total stays the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from autoprune.core.allocation import (
    block_ratios,
    counted,
    halfway,
    least_divergence,
    median_score,
    outlier_share,
)
from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.sparsity import Unstructured
from autoprune.core.statistics import InputNorm
from autoprune.errors import NumericsError, RecipeError
from autoprune.steps.base import Block, Group, Needs, Step
from autoprune.steps.options import AllocateOptions
from autoprune.steps.price import FLOAT, Price, Shape
from autoprune.steps.survey import Survey, SurveyResult
from autoprune.steps.wanda import Wanda


@dataclass(frozen=True)
class _Blocks:
    """What there is to share zeros out among: by block, the full names and sizes of the layers to prune."""

    names: list[list[str]] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)

    def add(self, block: Block) -> None:
        """One more block."""
        self.names.append([f"{block.name}.{layer.name}" for layer in block.layers])
        self.sizes.append([layer.shape[0] * layer.shape[1] for layer in block.layers])

    @property
    def weights(self) -> list[int]:
        """How many each block has."""
        return [sum(sizes) for sizes in self.sizes]


@dataclass(frozen=True)
class Allocate(AllocateOptions, Step):
    """All layers of a block get one ratio, by what Wanda's scores say of the block (OWL or DLP), or by divergence."""

    name: ClassVar[str] = "allocate"
    title: ClassVar[str] = "Allocation"
    needs: ClassVar[Needs] = Needs(survey=True)

    def apply(self, block: Block) -> None:
        """All is done by the survey."""

    def survey(self, survey: Survey) -> SurveyResult:
        """One walk over the dense model."""
        assert isinstance(survey.target, Unstructured)
        ratio, blocks = survey.target.ratio, _Blocks()
        way = self._by_divergence if self.allocation == "divergence" else self._by_scores
        ratios, notes = way(survey, blocks, ratio)
        each = [r for r, sizes in zip(ratios, blocks.sizes, strict=True) for _ in sizes]
        targets = counted(each, [n for sizes in blocks.sizes for n in sizes], ratio)
        names = [name for names in blocks.names for name in names]
        return SurveyResult(dict(zip(names, targets, strict=True)), {**notes, "ratios": ratios})

    def _by_scores(self, survey: Survey, blocks: _Blocks, ratio: float) -> tuple[list[float], dict[str, Any]]:
        """By what Wanda's scores of a block say of it."""
        worth = []
        for block, groups in survey.blocks(InputNorm):
            if block.layers:
                worth.append(self._worth([] if self.allocation == "uniform" else list(_scores(groups))))
                blocks.add(block)
        reach = self.dlp_range if self.allocation == "dlp" else self.owl_range
        return block_ratios(worth, blocks.weights, ratio, reach), {"worth": worth}

    def _worth(self, scores: list[Float[Tensor, "_ _"]]) -> float:
        """Blocks are worth more with more outliers, or with a lower median."""
        if not scores:
            return 0.0
        return outlier_share(scores, self.owl_factor) if self.allocation == "owl" else -median_score(scores)

    def _by_divergence(self, survey: Survey, blocks: _Blocks, ratio: float) -> tuple[list[float], dict[str, Any]]:
        """By what the model's predictions lose with each block alone pruned by Wanda, less and more than on average.

        Raises: NumericsError naming a block with which predictions are not finite.
        """
        ends = halfway(ratio, self.divergence_range)
        for block, groups in survey.blocks(InputNorm, followed=self.divergence_samples):
            if not block.layers:
                continue
            blocks.add(block)
            for end in ends:
                with block.trial():
                    block.solve(groups, partial(_pruned, Unstructured(end)), InputNorm)
                    survey.follow(block)
        found = survey.divergences()
        losses = [*zip(found[::2], found[1::2], strict=True)]
        for names, loss in zip(blocks.names, losses, strict=True):
            if not all(map(math.isfinite, loss)):
                raise NumericsError(
                    f"with {names[0]} and its block pruned alone the predictions are not finite; try --dtype float32,"
                    " or --allocation owl"
                )
        ratios = least_divergence(losses, blocks.weights, ratio, *ends)
        return ratios, {"at": list(ends), "divergence": [list(loss) for loss in losses]}

    def check_machine(self, device: str, processes: int) -> None:
        """Raises: RecipeError for divergence in several processes."""
        super().check_machine(device, processes)
        if processes > 1 and self.allocation == "divergence":
            raise RecipeError(
                "--allocation divergence runs its samples in one process; start it without torchrun, or allocate by"
                " owl or dlp"
            )

    def price(self, shape: Shape) -> Price:
        """For divergence: two streams for every block on few samples, and the logits of one window of two models."""
        price = super().price(shape)
        if self.allocation != "divergence" or not shape.samples:
            return price
        share = min(self.divergence_samples, shape.samples) / shape.samples
        streams = 2 * shape.blocks + 1
        logits = shape.tokens * shape.vocabulary
        return Price(
            work=price.work + 4 * FLOAT * logits,
            streams=math.ceil(streams * share),
            forwards=(shape.blocks + 2) * share,
            flops=2.0 * shape.width * logits * streams * share * shape.samples,
        )


def _pruned(target: Unstructured, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
    """By Wanda, at another target than the layers' own."""
    return Wanda().solve([replace(problem, target=target) for problem in problems])


def _scores(groups: Sequence[Group]) -> Iterator[Float[Tensor, "_ _"]]:
    """Wanda's, of all layers of a block."""
    for group in groups:
        norm = group.statistics[InputNorm]
        assert isinstance(norm, InputNorm)
        for layer in group.layers:
            yield layer.matrix.float().abs() * norm.norm
