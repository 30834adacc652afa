"""How quick and how large models are beside each other, and what was gained by the figures. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CLEAR = 0.05  # a ratio of times nearer to 1 than this is no gain, whatever its spread: memory layouts differ that much
CHANCE = 0.05
CLEAR_SIZE = 0.01  # the same for sizes, which do not vary
EAGER, COMPILED = "eager", "compiled"


@dataclass(frozen=True)
class Timing:
    """What each round measured in one mode; in every tuple one value for each round.

    ``working_bytes``: the peak beside the weights, at the larger batch; None where this machine does not tell.
    """

    mode: str
    first_token: tuple[float, ...]  # seconds from the call to the first new token, at batch 1
    prompt_rate: tuple[float, ...]  # prompt tokens per second, at the larger batch
    rate: tuple[float, ...]  # new tokens per second behind the first, at batch 1
    batch_rate: tuple[float, ...]  # the same at the larger batch, over all sequences
    working_bytes: int | None


@dataclass(frozen=True)
class ModelSpeed:
    """One model as it is stored and held, and how quick it was; ``timings`` has one entry for each mode.

    ``zeros`` counts weights of matrices; ``zeros_2_4`` are those in matrices of which every four consecutive weights
    hold at most two others.
    """

    model: str
    dtype: str
    file_bytes: int
    weight_bytes: int  # of the weights and buffers as they are held, shared ones once
    weights: int
    zeros: int
    zeros_2_4: int
    load: tuple[float, ...]  # seconds
    timings: tuple[Timing, ...]
    vocabulary: int = 0  # words that its tokens are chosen from; 0: not noted

    @property
    def share_of_zeros(self) -> float:
        """In [0, 1]."""
        return self.zeros / self.weights

    def timing(self, mode: str) -> Timing:
        """What was measured in that mode."""
        return next(timing for timing in self.timings if timing.mode == mode)


@dataclass(frozen=True)
class Ratio:
    """A model's value over another's in the same round: median and range over the rounds.

    ``steady``: whether so many rounds lie on one side of 1 that chance would bring it about with a probability of
    ``CHANCE`` at most (the sign test, two-sided): all of 6 to 8 rounds, all but one of 9 to 11, 23 of 32.
    """

    median: float
    low: float
    high: float
    steady: bool

    def __str__(self) -> str:
        spread = "" if self.low == self.high else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.median:.2f}{spread}"


@dataclass(frozen=True)
class Figure:
    """One figure of a model in one mode: its values (one, or one for each round), in units for people."""

    name: str
    values: tuple[float, ...]
    more_is_better: bool
    words: str = ""  # what a sentence calls it

    @property
    def is_size(self) -> bool:
        """Whether it is one value that is the same at every look."""
        return self.name.endswith("MB")

    @property
    def median(self) -> float:
        """Over the rounds."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class SpeedResult:
    """Models beside each other, the first being what others are compared with; ``settings`` say how."""

    models: tuple[ModelSpeed, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modes(self) -> tuple[str, ...]:
        """What was measured: eager, and compiled where that was asked for."""
        return tuple(timing.mode for timing in self.models[0].timings)

    @property
    def batch(self) -> int:
        """Sequences of the larger batch."""
        return int(self.settings["batch_size"])

    def lines(self) -> Iterator[tuple[ModelSpeed, str, list[Figure]]]:
        """Every model in every mode, with its figures; in each mode the others are compared with the first."""
        for mode in self.modes:
            for model in self.models:
                yield model, mode, figures(model, mode, self.batch)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was gained, a sentence for each model and mode but the first of each."""
        base = self.models[0]
        found = []
        for mode in self.modes:
            name = "" if mode == EAGER else f", {mode}"
            if mode != EAGER:
                by_mode = [figures(base, m, self.batch) for m in (mode, EAGER)]
                found.append(f"{base.model}{name}, against {EAGER}: {_judged(*by_mode)[0]}.")
            found += [f"{m.model}{name}: {verdict(m, base, mode, self.batch)}" for m in self.models[1:]]
        return tuple(found)

    def __repr__(self) -> str:
        return "\n".join(["Speed beside " + self.models[0].model, *self.sentences])


def figures(model: ModelSpeed, mode: str, batch: int) -> list[Figure]:
    """All that is known of a model in a mode, in the order of the tables; sizes on disk and loading go with eager."""
    timing = model.timing(mode)
    memory = [] if timing.working_bytes is None else [model.weight_bytes + timing.working_bytes]
    stored = [
        Figure("file, MB", (model.file_bytes / 1e6,), False, "size of the file"),
        Figure("weights in memory, MB", (model.weight_bytes / 1e6,), False, "memory of the weights"),
        Figure("load, s", model.load, False, "time to load"),
    ]
    return [
        *(stored if mode == EAGER else []),
        *(Figure("peak memory, MB", (value / 1e6,), False) for value in memory),
        Figure(
            "first token, ms", tuple(1e3 * value for value in timing.first_token), False, "time to the first token"
        ),
        Figure(f"prompt tokens/s, batch {batch}", timing.prompt_rate, True, "prompt tokens per second"),
        Figure("tokens/s, batch 1", timing.rate, True, "tokens per second at batch 1"),
        Figure(f"tokens/s, batch {batch}", timing.batch_rate, True, f"tokens per second at batch {batch}"),
    ]


def paired(ours: Sequence[float], base: Sequence[float]) -> Ratio:
    """The ratios round by round, which the machine's own ups and downs leave alone."""
    ratios = [a / b for a, b in zip(ours, base, strict=True)]
    odd = min(sum(ratio <= 1 for ratio in ratios), sum(ratio >= 1 for ratio in ratios))
    chance = 2 * sum(math.comb(len(ratios), i) for i in range(odd + 1)) / 2 ** len(ratios)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), chance <= CHANCE)


def verdict(model: ModelSpeed, base: ModelSpeed, mode: str, batch: int) -> str:
    """What a model brings against ``base`` in the same mode: gains and losses by the figures, and what became of its
    zeros.
    """
    found, gained = _judged(figures(model, mode, batch), figures(base, mode, batch))
    words = [found]
    if model.share_of_zeros >= base.share_of_zeros + CLEAR_SIZE:
        words.append(_about_zeros(model, base, gained))
    if model.vocabulary != base.vocabulary:
        words.append(
            f"It has {model.vocabulary:,} words in its vocabulary, and {base.model} {base.vocabulary:,}: its tokens"
            " are not the same amount of text"
        )
    return ". ".join(words) + "."


def _judged(ours: Sequence[Figure], base: Sequence[Figure]) -> tuple[str, bool]:
    """Gains and losses in words, and whether anything was gained.

    Counted is what lies steadily on the same side of 1, and not too near to it. Peak memory is shown only.
    """
    better, worse = list[str](), list[str]()
    by_name = {figure.name: figure for figure in base}
    for mine in ours:
        ratio = paired(mine.values, by_name[mine.name].values)
        clear = (
            abs(ratio.median - 1) >= CLEAR_SIZE if mine.is_size else abs(ratio.median - 1) >= CLEAR and ratio.steady
        )
        if mine.words and clear:
            gain = (ratio.median > 1) == mine.more_is_better
            (better if gain else worse).append(f"{mine.words} × {ratio}")
    said = f"gained: {', '.join(better)}" if better else "nothing was gained"
    return said + (f"; lost: {', '.join(worse)}" if worse else ""), bool(better)


def _about_zeros(model: ModelSpeed, base: ModelSpeed, gained: bool) -> str:
    share = f"{model.share_of_zeros:.0%} of its weights are zeros"
    if not gained:
        said = f"{share}, which dense tensors store and multiply like any other number"
    elif model.weights == base.weights:
        said = (
            f"{share}, but dense tensors store and multiply them like any other number: look for another cause, such"
            " as the dtype, or measure more rounds"
        )
    else:
        said = f"{share}; these bring nothing in dense tensors, the gain is that there are fewer weights"
    if model.zeros_2_4 >= 0.99 * model.zeros:
        said += (
            ". They are 2:4, which the sparse tensor cores of NVIDIA GPUs from Ampere on can use if an engine has"
            " kernels for it; this run used dense kernels"
        )
    return said
