"""What `run.py` found, line by line: on the terminal, and as a table of a page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One line: what was timed, against what, and what is aimed at."""

    phase: str
    against: str
    goal: float
    ratios: tuple[float, ...]
    seconds: float  # the program's, median
    floor: float  # median
    at_least: bool = False

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal


def show(rows: Sequence[Row], console: Console) -> None:
    """A table; a goal that is missed is marked."""
    table = Table(
        "phase", "program s", "floor s", "ratio", "goal", "", "floor", box=None, pad_edge=False, header_style="bold"
    )
    for row in rows:
        spread = f"{min(row.ratios):.3g} to {max(row.ratios):.3g}"
        goal = f"{'>=' if row.at_least else '<='} {row.goal:g}"
        table.add_row(
            row.phase,
            f"{row.seconds:.3g}",
            f"{row.floor:.3g}",
            f"{row.ratio:.3g} ({spread})",
            goal,
            "met" if row.met else "MISSED",
            row.against,
        )
    console.print(table)


def lines(rows: Sequence[Row], facts: Mapping[str, object]) -> str:
    """The table as Markdown."""
    clock = "" if facts["clock"] == "wall" else ", in processor time on one thread"
    found = [
        (
            f"Measured on {facts['date']}, medians of {facts['runs']} (exchange: of"
            f" {max(1, int(str(facts['runs'])) // 2)}){clock}:"
        ),
        "",
        "| phase | floor | ratio | spread | aim |",
        "|---|---|---:|---:|---|",
    ]
    for row in rows:
        aim = f"{'≥' if row.at_least else '≤'} {row.goal:g}" + ("" if row.met else ", missed")
        found.append(
            f"| {row.phase} | {row.against} | {row.ratio:.3g} | {min(row.ratios):.3g} to {max(row.ratios):.3g} |"
            f" {aim} |"
        )
    return "\n".join(found)


def publish(table: str, name: str, page: str) -> None:
    """Puts a table between its marks on a page of docs/."""
    path = Path(__file__).parent.parent / "docs" / page
    before, rest = path.read_text(encoding="utf-8").split(f"<!-- {name}:begin -->")
    after = rest.split(f"<!-- {name}:end -->")[1]
    path.write_text(f"{before}<!-- {name}:begin -->\n{table}\n<!-- {name}:end -->{after}", encoding="utf-8")
