"""Distillation: the kept weights of all blocks learn the dense model's predictions (Hinton et al., arXiv 1503.02531).

For sparse language models: sparse fine-tuning by distillation, arXiv 2310.06927; here on calibration samples alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from autoprune.core.masked_adam import Best
from autoprune.steps.base import Training
from autoprune.steps.options import DistillOptions
from autoprune.steps.price import Price, Shape
from autoprune.steps.train import train
from autoprune.steps.whole import ModelStep


@dataclass(frozen=True)
class Distill(DistillOptions, ModelStep):
    """Minimises ``KL(p || q)``, p of the dense model and q of the pruned one, over the tokens of the samples.

    Adam on kept weights, norms and biases of all blocks at once; embeddings and head stay. A tenth of the samples is
    held out, and the best values on them are kept, those of the beginning among them.
    """

    name: ClassVar[str] = "distill"
    title: ClassVar[str] = "Distillation"

    def fit(self, training: Training) -> Best:
        """The values of the whole model."""
        return train(training, self.distill_rate, self.distill_epochs * len(training.fitted), self.name)

    @property
    def compute_dtype(self) -> str:
        """What its passes run in."""
        return self.distill_dtype

    def price(self, shape: Shape) -> Price:
        """Beside the memory: four passes of each epoch, and the head's arithmetic."""
        head = 8.0 * shape.samples * shape.tokens * (shape.head or shape.outside) * self.distill_epochs
        return replace(super().price(shape), forwards=4.0 * self.distill_epochs, flops=head)
