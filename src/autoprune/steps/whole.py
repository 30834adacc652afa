"""Steps on the whole pruned model, after the walk: for what can't be done block by block."""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.core.masked_adam import Best
from autoprune.steps.base import Block, Step, Training


@dataclass(frozen=True)
class ModelStep(Step):
    """A step that comes last and sees all blocks at once, so both models must fit into memory."""

    def apply(self, block: Block) -> None:
        """Nothing: blocks are not worked on one by one."""

    def fit(self, training: Training) -> Best:
        """Values by parameter name, in float32, and their loss on held-out samples before and after."""
        raise NotImplementedError

    @property
    def compute_dtype(self) -> str:
        """What the passes run in: ``auto``, ``float32`` or ``bfloat16``."""
        raise NotImplementedError
