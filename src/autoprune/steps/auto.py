"""The automatic choice: several recipes on every block, judged by samples that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from autoprune.core.sparsity import Target
from autoprune.core.statistics import CrossGram, InputGram, InputNorm
from autoprune.errors import RecipeError
from autoprune.steps.base import Block, Decisions, Layer, Needs, Step
from autoprune.steps.options import GRANULARITIES, AutoOptions, BarberOptions
from autoprune.steps.price import Price, Shape
from autoprune.steps.table import check_order, entry, make_steps

HELD_OUT = 0.2  # share of the samples that judge


@dataclass(frozen=True)
class Auto(AutoOptions, Step):
    """Keeps for every sub-block the tried steps with the lowest ``||y - y_d||^2 / ||y_d||^2`` on held-out samples.

    y is the block's output on the stream as pruned so far, y_d the dense block's on the dense stream. First the best
    one for the whole block, then sub-block by sub-block whatever is better still: never worse than the best of them.
    """

    name: ClassVar[str] = "auto"
    title: ClassVar[str] = "Automatic choice"
    needs: ClassVar[Needs] = Needs(
        statistic=InputGram,
        also=(InputNorm, CrossGram),
        dense_stream=True,
        held_out=HELD_OUT,
        alone=True,
    )

    def apply(self, block: Block) -> None:
        """Tries, or takes what was chosen before."""
        parts = sub_blocks(block.layers)
        wanted = self._chosen_before(block, len(parts)) if self.auto_choices else self.auto_tries
        tried: dict[str, Decisions] = {}
        losses: dict[str, float] = {}
        for words in dict.fromkeys(wanted):
            with block.trial():
                for step in steps_of(words):
                    step.apply(block)
                losses[words] = block.loss(held_out=True)
                tried[words] = block.decisions()
        if self.auto_choices:
            chosen = dict(zip(parts, wanted, strict=True))
            for part, words in chosen.items():
                block.adopt(tried[words], parts[part])
        else:
            chosen = self._best(block, parts, tried, losses)
        loss = block.loss(held_out=True)
        for part, words in chosen.items():
            block.note({"auto": words, "held_out": loss}, parts[part])

    def _chosen_before(self, block: Block, parts: int) -> Sequence[str]:
        begin = parts * block.index
        chosen = self.auto_choices[begin : begin + parts]
        if len(chosen) < parts:
            raise RecipeError(
                f"--auto_choices names {len(self.auto_choices)} choices, which end before {block.name}; it takes"
                f" {parts} for every block, in their order"
            )
        return chosen

    def _best(
        self,
        block: Block,
        parts: Mapping[str, Sequence[Layer]],
        tried: Mapping[str, Decisions],
        losses: Mapping[str, float],
    ) -> dict[str, str]:
        first = min(losses, key=lambda words: losses[words])
        block.adopt(tried[first], block.layers)
        chosen, best = dict.fromkeys(parts, first), losses[first]
        for part, layers in parts.items():
            for words, decisions in tried.items():
                if words == chosen[part] or len(parts) == 1:
                    continue
                with block.trial() as trial:
                    block.adopt(decisions, layers)
                    loss = block.loss(held_out=True)
                    if loss < best:
                        chosen[part], best = words, loss
                        trial.keep()
        return chosen

    def check(self, target: Target | None) -> None:
        """Raises: RecipeError for steps that can't be tried."""
        for words in (*self.auto_tries, *self.auto_choices):
            names = [word.partition("-")[0] for word in words.split("+")]
            for name in names:
                entry(name, "--auto_tries")
            check_order(names, given=False)
            for name in names:
                if name in (self.name, "reconstruct"):
                    raise RecipeError(f"auto can't try {name}: put it behind auto in --steps")
            for step in steps_of(words):
                step.check(target)

    def price(self, shape: Shape) -> Price:
        """All that is tried, one after the other, and what was decided by each."""
        prices = [step.price(shape) for words in self.auto_tries for step in steps_of(words)]
        kept = len(self.auto_tries) * shape.block * (shape.stored + 1)
        return Price(
            work=max(price.work for price in prices) + kept,
            new_weights=True,
            outputs=max(price.outputs for price in prices),
            forwards=4.0 + 0.5 * len(self.auto_tries),
            flops=sum(price.flops for price in prices),
        )


def steps_of(words: str) -> tuple[Step, ...]:
    """The steps of ``wanda+barber-output1-0.1``. Raises: RecipeError if a word can't be read."""
    steps: list[Step] = []
    for word in words.split("+"):
        name, *values = word.split("-")
        entry(name, "--auto_tries")
        if not values:
            steps += make_steps([name], {})
            continue
        try:
            granularity, threshold = values[0], float(values[1])
            if len(values) > 2 or granularity not in GRANULARITIES or not 0 <= threshold <= 1:
                raise ValueError(word)
            steps += make_steps([name], {name: BarberOptions(granularity, threshold)})
        except (IndexError, TypeError, ValueError) as error:
            raise RecipeError(f"--auto_tries {words!r}: {word} can't be read; write barber-output1-0.1") from error
    return tuple(steps)


def sub_blocks(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Layers by the child of the block that holds them; bare ones form one group."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.name.split(".")[0] if "." in layer.name else "", []).append(layer)
    return found
