"""How results look in a Python session: no more than a screen. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoprune.results.numbers import number_text
from autoprune.results.table import Table, from_rows

if TYPE_CHECKING:
    from autoprune.results.types import PerplexityResult

LINES, WIDTH = 16, 100


def screen(head: str, lines: Sequence[str]) -> str:
    """A head, and lines below it, cut in length and number to what is read at a glance."""
    shown = [f"  {line}" for line in lines]
    if len(shown) > LINES:
        shown = [*shown[: LINES - 1], f"  … {len(lines) - LINES + 1} more"]
    return "\n".join([head, *(line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in shown)])


def perplexity_table(texts: Sequence[PerplexityResult]) -> Table:
    """A line for every text: perplexity, bits per byte, and on how much of it."""
    heads = ("text", "perplexity", "bits per byte", "windows", "tokens each")
    rows = [
        (
            text.source,
            number_text(text.perplexity),
            "-" if text.bits_per_byte is None else f"{text.bits_per_byte:.4f}",
            f"{text.windows:,}",
            f"{text.seqlen:,}",
        )
        for text in texts
    ]
    return Table(from_rows(heads, rows), title="Perplexity, lower is better").without_empty()
