"""Block reconstruction (EBFT, arXiv 2402.12419; arXiv 2510.14444): kept weights are trained on the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autoprune.steps.base import Block, Needs, Step, Training
from autoprune.steps.options import ReconstructOptions
from autoprune.steps.price import FLOAT, Price, Shape
from autoprune.steps.train import HELD_OUT, LOOKS, train


@dataclass(frozen=True)
class Reconstruct(ReconstructOptions, Step):
    """Minimises ``||y - y_d||^2 / ||y_d||^2``: y from the stream as pruned so far, y_d of the dense block and stream.

    Adam on kept weights, norms and biases; a tenth of the samples is held out, the best values on them are kept, and
    where nothing got better the block stays as it was.
    """

    name: ClassVar[str] = "reconstruct"
    title: ClassVar[str] = "Reconstruct"
    needs: ClassVar[Needs] = Needs(data=True, dense_stream=True, held_out=HELD_OUT, alone=True)

    def apply(self, block: Block) -> None:
        """Trains one block, unless nothing of it is to be pruned."""
        if not block.layers:
            return
        before = block.loss(held_out=True)
        with block.training(self.reconstruct_dtype, by_token=self.reconstruct_loss == "token") as training:
            rate = self._best_rate(training) if self.rate_trials else self.learning_rate
            best = train(training, rate, self.epochs * len(training.fitted), self.name)
        with block.trial() as trial:
            block.assign_values(best.values)
            after = block.loss(held_out=True)
            if after < before:
                trial.keep()
        block.note({"held_out_before": before, "held_out_after": min(before, after), "rate": rate})

    def _best_rate(self, training: Training) -> float:
        """Of half, once and twice the rate the one that is best on held-out samples after a quarter of the steps."""
        steps = max(1, self.epochs * len(training.fitted) // 4)
        rates = [self.learning_rate * factor for factor in (0.5, 1.0, 2.0)]
        losses = [train(training, rate, steps, self.name).loss for rate in rates]
        return rates[losses.index(min(losses))]

    def price(self, shape: Shape) -> Price:
        """In float32 masters, their two moments, the pattern and the best values; the pattern as it was; values and
        gradients in the precision of the passes, where float32 values are the masters; a block's activations.
        """
        passes = 2 if self.reconstruct_dtype == "bfloat16" else FLOAT
        work = shape.block * (5 * FLOAT + 1 + FLOAT) + shape.layer * FLOAT + shape.forward(passes)
        fitted = 3.0 * (1 - HELD_OUT) * self.epochs  # forward, and twice as much back
        trials = (3 * fitted / 4, 4) if self.rate_trials else (0.0, 1)
        looks = (LOOKS + 1) * trials[1] + 2
        return Price(work=work, new_weights=True, forwards=fitted + trials[0] + HELD_OUT * looks)
