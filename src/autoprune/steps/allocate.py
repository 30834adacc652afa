"""Allocation: blocks that matter more stay denser, and the total stays the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from autoprune.core.allocation import block_ratios, counted, median_score, outlier_share
from autoprune.core.sparsity import Unstructured
from autoprune.core.statistics import InputNorm
from autoprune.steps.base import Block, Group, Needs, Step
from autoprune.steps.options import AllocateOptions
from autoprune.steps.survey import Survey, SurveyResult


@dataclass(frozen=True)
class Allocate(AllocateOptions, Step):
    """All layers of a block get one ratio, by what Wanda's scores say of the block (OWL or DLP)."""

    name: ClassVar[str] = "allocate"
    title: ClassVar[str] = "Allocation"
    needs: ClassVar[Needs] = Needs(survey=True)

    def apply(self, block: Block) -> None:
        """All is done by the survey."""

    def survey(self, survey: Survey) -> SurveyResult:
        """One walk over the dense model."""
        assert isinstance(survey.target, Unstructured)
        worth, names, members = [], [], []
        sizes: list[list[int]] = []
        for block, groups in survey.blocks(InputNorm):
            if not block.layers:
                continue
            scores = [] if self.allocation == "uniform" else list(_scores(groups))
            worth.append(self._worth(scores))
            mine = [layer.shape[0] * layer.shape[1] for layer in block.layers]
            names += [f"{block.name}.{layer.name}" for layer in block.layers]
            members += [len(sizes)] * len(mine)
            sizes.append(mine)
        reach = self.dlp_range if self.allocation == "dlp" else self.owl_range
        ratio = survey.target.ratio
        ratios = block_ratios(worth, [sum(mine) for mine in sizes], ratio, reach)
        targets = counted([ratios[b] for b in members], [n for mine in sizes for n in mine], ratio)
        return SurveyResult(dict(zip(names, targets, strict=True)), {"worth": worth, "ratios": ratios})

    def _worth(self, scores: list[Float[Tensor, "_ _"]]) -> float:
        """Blocks are worth more with more outliers, or with a lower median."""
        if not scores:
            return 0.0
        return outlier_share(scores, self.owl_factor) if self.allocation == "owl" else -median_score(scores)


def _scores(groups: Sequence[Group]) -> Iterator[Float[Tensor, "_ _"]]:
    """Wanda's, of all layers of a block."""
    for group in groups:
        norm = group.statistics[InputNorm]
        assert isinstance(norm, InputNorm)
        for layer in group.layers:
            yield layer.matrix.float().abs() * norm.norm
