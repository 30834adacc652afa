"""A table as plain cells, and its renderings: aligned text, Markdown, CSV, LaTeX and rich."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

LATEX_SPECIALS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{char: "\\" + char for char in "&%$#_{}"},
    "±": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
TAIL = re.compile(
    r"(\S*\d\S*)( (?!%|pp\b).+)"
)  # a word with a digit in it, then neither percent nor percentage points


@dataclass(frozen=True)
class Grid:
    """Cells of text under headers; ``words`` counts the leading columns that are words and stand left, numbers stand
    right.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 2
    strong: frozenset[tuple[int, int]] = frozenset()  # (row, column) of cells to stress
    breaks: frozenset[int] = frozenset()  # rows after which a rule is drawn
    title: str = ""

    @property
    def spreads(self) -> dict[int, int]:
        """For columns of numbers with something behind them, such as ``mean ± sd``: the width of the longest such
        tail.
        """
        tails = {
            j: max((len(parts(row[j])[1]) for row in self.rows), default=0)
            for j in range(self.words, len(self.header))
        }
        return {j: tail for j, tail in tails.items() if tail}


def parts(cell: str) -> tuple[str, str]:
    """A number with its unit, and what stands behind it:

    ``("28.4", " ± 1.9")``, ``("42.1", " (of 4)")``, ``("50.00 %", "")``.
    """
    match = TAIL.fullmatch(cell)
    return (match[1], match[2]) if match else (cell, "")


def to_text(grid: Grid) -> str:
    """Aligned columns, two spaces apart, with a rule under the header."""
    rows = [[_with_tail(cell, grid.spreads.get(j, 0)) for j, cell in enumerate(row)] for row in grid.rows]
    widths = [max(len(line[i]) for line in (grid.header, *rows)) for i in range(len(grid.header))]
    rule = ["-" * width for width in widths]
    padded = [_padded(line, widths, grid.words) for line in (grid.header, rule, *rows)]
    return "".join("  ".join(cells).rstrip() + "\n" for cells in padded)


def grid_to_markdown(grid: Grid) -> str:
    """A GitHub table; padded, so that its source can be read too."""
    rows = [
        [_stressed(cell.replace("|", r"\|"), (i, j) in grid.strong, "**", "**") for j, cell in enumerate(row)]
        for i, row in enumerate(grid.rows)
    ]
    lines = [[cell.replace("|", r"\|") for cell in grid.header], *rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(grid.header))]
    rule = ["-" * w if i < grid.words else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    padded = [_padded(line, widths, grid.words) for line in (lines[0], rule, *lines[1:])]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in padded)


def grid_to_csv(grid: Grid) -> str:
    """Comma-separated values with a header line."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([grid.header, *grid.rows])
    return out.getvalue()


def grid_to_latex(grid: Grid) -> str:
    """A ``tabular`` with the rules of the booktabs package."""
    columns = "".join("l" if i < grid.words else "r" for i in range(len(grid.header)))
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(_latex, grid.header)) + r" \\",
        r"\midrule",
    ]
    for i, row in enumerate(grid.rows):
        lines.append(
            " & ".join(_stressed(_latex(cell), (i, j) in grid.strong, r"\textbf{", "}") for j, cell in enumerate(row))
            + r" \\"
        )
        if i in grid.breaks and i + 1 < len(grid.rows):
            lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def grid_to_rich(grid: Grid) -> Table:
    """A table for a rich console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=grid.title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", header_style="bold"
    )
    rows = [list(row) for row in grid.rows]
    for i, head in enumerate(grid.header):
        tail = grid.spreads.get(i, 0)
        if tail:  # rich strips spaces behind a word when it pushes it to the right, so this is done here
            cells = [head, *(_with_tail(row[i], tail) for row in rows)]
            head, *cells = (cell.rjust(max(map(len, cells))) for cell in cells)
            for row, cell in zip(rows, cells, strict=True):
                row[i] = cell
        table.add_column(Text(head), justify="left" if i < grid.words or tail else "right", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(
            *(Text(cell, style="bold green" if (i, j) in grid.strong else "") for j, cell in enumerate(row)),
            end_section=i in grid.breaks,
        )
    return table


def _padded(line: Sequence[str], widths: Sequence[int], words: int) -> list[str]:
    return [
        cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    ]


def _with_tail(cell: str, tail: int) -> str:
    """Room for the longest tail, so that the numbers stand below each other."""
    return cell + " " * (tail - len(parts(cell)[1]))


def _stressed(cell: str, strong: bool, before: str, after: str) -> str:
    return f"{before}{cell}{after}" if strong else cell


def _latex(cell: str) -> str:
    return "".join(LATEX_SPECIALS.get(char, char) for char in cell)
