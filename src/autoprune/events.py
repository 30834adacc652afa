"""What the loop tells whoever watches it; the mathematics and the loop know no progress bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoprune.results.outcome import LayerOutcome, SubBlockOutcome


@dataclass(frozen=True)
class Progress:
    """So much of one phase of one block is done: micro-batches, or steps of training."""

    block: int
    blocks: int
    phase: str  # e.g. "observe", "advance"
    done: int
    total: int


@dataclass(frozen=True)
class Work:
    """So much of something is done that does not go from block to block, such as learning a rotation."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class BlockResult:
    """A block is done: the outcomes of its layers, and of its sub-blocks if LLM-Barber ran."""

    block: int
    blocks: int
    name: str
    layers: tuple[LayerOutcome, ...]
    sub_blocks: tuple[SubBlockOutcome, ...] = ()
    trained: tuple[str, ...] = ()  # parameters that are no layer's weight and were changed, such as norms


@dataclass(frozen=True)
class Phase:
    """A part of the run begins, such as "calibration" or "perplexity wikitext2"; ``total`` is None when unknown,
    ``done`` is what of it an earlier run has done.
    """

    name: str
    total: int | None = None
    done: int = 0


@dataclass(frozen=True)
class Notice:
    """Something that the user should know, though it is no error."""

    text: str


Event = Progress | Work | BlockResult | Phase | Notice
Emit = Callable[[Event], None]


def silent(_: Event) -> None:
    """Nobody watches."""


class Heard:
    """Passes events on, and keeps what notices said, each once."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._texts: dict[str, None] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._texts[event.text] = None
        self._emit(event)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was said, in its order."""
        return tuple(self._texts)
