"""What a step may see of the whole dense model before anything is pruned, and what it may settle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from autoprune.core.sparsity import Target
from autoprune.steps.base import Block, Group, InputStatistic


@runtime_checkable
class Survey(Protocol):
    """A walk that only looks: the dense model, block by block, on the calibration samples."""

    target: Target | None

    def blocks(
        self, statistic: InputStatistic | None, *, followed: int = 0
    ) -> Iterator[tuple[Block, Sequence[Group]]]:
        """Every block with the input groups of its dense layers; what is assigned must be rolled back.

        ``followed``: on so many samples, the first ones, ``follow`` may be asked what comes of a changed block.
        """
        ...

    def follow(self, block: Block) -> None:
        """The model with this block as it is now, and all others dense, is run beside the dense one from here on."""
        ...

    def divergences(self) -> list[float]:
        """For each model that is followed, in order: the mean of ``KL(p || q)`` over the tokens of those samples.

        In nats, p by the dense model and q by that one; behind the last block.
        """
        ...


@dataclass(frozen=True)
class SurveyResult:
    """What a survey found: targets of single layers, by their full names, and what the record says of it."""

    targets: Mapping[str, Target] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
