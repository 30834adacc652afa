"""Steps on the whole pruned model, after the walk: for what can't be done block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autoprune.core.masked_adam import Best
from autoprune.steps.base import Block, Needs, Step, Training
from autoprune.steps.price import FLOAT, Price, Shape
from autoprune.steps.train import HELD_OUT


@dataclass(frozen=True)
class ModelStep(Step):
    """A step that comes last and sees all blocks at once, so both models must fit into memory.

    What it gives is kept where the loss on held-out samples fell; so it needs some, and all of them in one process.
    """

    needs: ClassVar[Needs] = Needs(data=True, held_out=HELD_OUT, alone=True)
    prunes: ClassVar[bool] = False
    refines: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def apply(self, block: Block) -> None:
        """Nothing: blocks are not worked on one by one."""

    def fit(self, training: Training) -> Best:
        """Values by parameter name, in float32, and their loss on held-out samples before and after."""
        raise NotImplementedError

    @property
    def compute_dtype(self) -> str:
        """What the passes run in: ``auto``, ``float32`` or ``bfloat16``."""
        return "auto"

    def price(self, shape: Shape) -> Price:
        """The whole model twice; for each weight a master, its moments, gradient, pattern and best value; logits."""
        blocks = max(1, shape.parameters // max(1, shape.block))
        logits = 4 * shape.batch * shape.tokens * shape.vocabulary * FLOAT
        values = shape.parameters * (3 * shape.running + 7 * FLOAT)
        return Price(whole=values + 2 * blocks * shape.forward(shape.running) + logits)
