"""The automatic choice: several recipes on every block, judged by samples that nothing was fitted to."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from autoprune.core.sparsity import Target
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
    needs: ClassVar[Needs] = Needs(data=True, dense_stream=True, held_out=HELD_OUT, alone=True)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the steps that are tried, by their names

    def __post_init__(self) -> None:
        """What is tried says what is to be observed."""
        needs = [step.needs for words in self._wanted for step in self.steps_of(words)]
        kinds = dict.fromkeys(kind for need in needs for kind in need.statistics)
        gradients = any(need.gradients for need in needs)
        object.__setattr__(self, "needs", replace(type(self).needs, also=tuple(kinds), gradients=gradients))

    def beside(self, options: Mapping[str, Any]) -> Auto:
        """With the options of the steps that it tries."""
        return replace(self, options=options)

    @property
    def _wanted(self) -> tuple[str, ...]:
        """The recipes that are applied to blocks, each once."""
        given = [words for _, words in self._choices]
        return tuple(dict.fromkeys(given or self.auto_tries))

    @property
    def _choices(self) -> list[tuple[str, str]]:
        """Patterns of sub-blocks' names, and what is chosen for them."""
        return [(pattern, words) for pattern, _, words in (choice.rpartition("=") for choice in self.auto_choices)]

    def apply(self, block: Block) -> None:
        """Tries, or takes what was chosen before."""
        parts = sub_blocks(block.layers)
        before = {part: self._chosen_before(full_name(block.name, part)) for part in parts} if self._choices else {}
        tried: dict[str, Decisions] = {}
        losses: dict[str, float] = {}
        for words in dict.fromkeys(before.values() if before else self._wanted):
            with block.trial():
                for step in self.steps_of(words):
                    step.apply(block)
                loss = block.loss(held_out=True)
                losses[words] = math.inf if math.isnan(loss) else loss
                tried[words] = block.decisions()
        if before:
            chosen = before
            for part, words in chosen.items():
                block.adopt(tried[words], parts[part])
        else:
            chosen = self._best(block, parts, tried, losses)
        loss = block.loss(held_out=True)
        for part, words in chosen.items():
            block.note({"auto": words, "held_out": loss}, parts[part])

    def _chosen_before(self, name: str) -> str:
        found = [words for pattern, words in self._choices if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise RecipeError(f"--auto_choices says nothing of {name}; add {name}=STEPS, or a pattern such as *=STEPS")
        return found[-1]

    def check_layers(self, layers: Mapping[str, Sequence[str]]) -> None:
        """Raises: RecipeError if choices are given that are not for all sub-blocks, or for none."""
        if not self._choices:
            return
        names = [
            full_name(block, part) for block, inside in layers.items() for part in dict.fromkeys(map(child, inside))
        ]
        for name in names:
            self._chosen_before(name)
        for pattern, words in self._choices:
            if not fnmatch.filter(names, pattern):
                raise RecipeError(
                    f"--auto_choices {pattern}={words} fits no sub-block; they are called {names[0]} and the like"
                )

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
        if odd := [words for pattern, words in self._choices if not pattern]:
            raise RecipeError(f"--auto_choices {odd[0]!r} is not PATTERN=STEPS, such as *.mlp=wanda+refit")
        for words in (*self.auto_tries, *self._wanted):
            names = [word.partition("-")[0] for word in words.split("+")]
            for name in names:
                entry(name, "--auto_tries")
            check_order(names, given=False)
            for name in names:
                if name == self.name or entry(name).trains:
                    raise RecipeError(f"auto can't try {name}: put it behind auto in --steps")
            for step in self.steps_of(words):
                step.check(target)

    def price(self, shape: Shape) -> Price:
        """All that is tried, one after the other, and what was decided by each."""
        prices = [step.price(shape) for words in self._wanted for step in self.steps_of(words)]
        tries = len(self._wanted)
        judged = tries + 1 + (shape.sub_blocks * (tries - 1) if shape.sub_blocks > 1 and not self._choices else 0)
        return Price(
            work=max(price.work for price in prices) + tries * shape.block * (shape.stored + 1),
            stays=max(price.stays for price in prices),
            new_weights=True,
            outputs=max(price.outputs for price in prices),
            forwards=HELD_OUT * judged + sum(price.forwards for price in prices),
            flops=sum(price.flops for price in prices),
        )

    def steps_of(self, words: str) -> tuple[Step, ...]:
        """The steps of ``wanda+barber-output1-0.1``, with their options.

        Raises: RecipeError if a word can't be read.
        """
        steps: list[Step] = []
        for word in words.split("+"):
            name, *values = word.split("-")
            entry(name, "--auto_tries")
            if not values:
                steps += make_steps([name], self.options)
                continue
            try:
                granularity, threshold = values[0], float(values[1])
                if len(values) > 2 or granularity not in GRANULARITIES or not 0 <= threshold <= 1:
                    raise ValueError(word)
                own = replace(
                    self.options.get(name) or BarberOptions(), prune_granularity=granularity, threshold=threshold
                )
                steps += make_steps([name], {name: own})
            except (IndexError, TypeError, ValueError) as error:
                raise RecipeError(f"--auto_tries {words!r}: {word} can't be read; write barber-output1-0.1") from error
        return tuple(steps)


def sub_blocks(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Layers by the child of the block that holds them; bare ones form one group."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(child(layer.name), []).append(layer)
    return found


def child(layer: str) -> str:
    """The child of the block in which a layer of this name lies; nothing for a bare one."""
    return layer.split(".")[0] if "." in layer else ""


def full_name(block: str, part: str) -> str:
    """A sub-block's name in the model; the block's for its bare layers."""
    return f"{block}.{part}" if part else block
