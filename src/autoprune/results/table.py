"""A table as columns of words, and its renderings: aligned text, Markdown, CSV, HTML and rich."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

MARKS = re.compile(r"[\\`*|<~\[]|(?<![^\W_])_|_(?![^\W_])")  # what Markdown would take for more than a letter
TAIL = re.compile(r"(\S*\d\S*)( (?!%|pp\b).+)")  # a word with a digit, then neither percent nor percentage points


@dataclass(frozen=True)
class Column:
    """A head and its cells. Numbers stand right, words left; ``spare`` columns are left out where there is no room for
    all, the highest first.
    """

    head: str
    cells: tuple[str, ...]
    words: bool = False
    strong: frozenset[int] = frozenset()  # lines whose cell is stressed
    spare: int = 0  # 0: never left out
    short: str = ""  # the head on a terminal

    @property
    def tail(self) -> int:
        """Width of the longest thing behind a number, such as `` ± sd``."""
        return 0 if self.words else max((len(parts(cell)[1]) for cell in self.cells), default=0)

    @property
    def aligned(self) -> list[str]:
        """The cells with room for the longest tail, so that the numbers stand below each other."""
        return [cell + " " * (self.tail - len(parts(cell)[1])) for cell in self.cells]


@dataclass(frozen=True)
class Table:
    """Columns of equal length; a rule is drawn after each line in ``breaks``. The ``note`` is a caption's: what is
    stressed, and what stands behind the numbers.
    """

    columns: tuple[Column, ...]
    breaks: frozenset[int] = frozenset()
    title: str = ""
    note: str = ""

    @property
    def header(self) -> tuple[str, ...]:
        """The heads."""
        return tuple(column.head for column in self.columns)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells, line by line."""
        return list(zip(*(column.cells for column in self.columns), strict=True))

    def without(self, heads: Collection[str]) -> Table:
        """The table without columns of these heads."""
        return replace(self, columns=tuple(column for column in self.columns if column.head not in heads))

    def without_empty(self) -> Table:
        """The table without columns of numbers in which nothing was measured."""
        kept = tuple(c for c in self.columns if c.words or any(cell not in ("-", "") for cell in c.cells))
        return replace(self, columns=kept)


def from_rows(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> tuple[Column, ...]:
    """Columns of lines of cells; the first ``words`` are words."""
    return tuple(Column(head, tuple(row[i] for row in rows), i < words) for i, head in enumerate(heads))


def spared(
    columns: Sequence[Column], spares: Mapping[str, int], shorts: Mapping[str, str] | None = None
) -> list[Column]:
    """The columns with what says, by head, which may be left out on a narrow terminal, and how heads are shortened."""
    known = shorts or {}
    return [replace(c, spare=spares.get(c.head, 0), short=known.get(c.head, "")) for c in columns]


def parts(cell: str) -> tuple[str, str]:
    """A number with its unit, and what stands behind it: ``("28.4", " ± 1.9")``, ``("50.00 %", "")``."""
    match = TAIL.fullmatch(cell)
    return (match[1], match[2]) if match else (cell, "")


def to_text(table: Table) -> str:
    """Aligned columns, two spaces apart, with a rule under the header."""
    lines = []
    for column in table.columns:
        cells = [column.head, "", *column.aligned]
        width = max(map(len, cells))
        cells[1] = "-" * width
        lines.append([cell.ljust(width) if column.words else cell.rjust(width) for cell in cells])
    return "".join("  ".join(cells).rstrip() + "\n" for cells in zip(*lines, strict=True))


def to_markdown(table: Table) -> str:
    """A GitHub table; padded, so that its source can be read too."""
    lines = []
    for column in table.columns:
        cells = [_stressed(marked(cell), i in column.strong, "**", "**") for i, cell in enumerate(column.cells)]
        cells = [marked(column.head), "", *cells]
        width = max(3, *map(len, cells))
        cells[1] = "-" * width if column.words else "-" * (width - 1) + ":"
        lines.append([cell.ljust(width) if column.words else cell.rjust(width) for cell in cells])
    return "".join("| " + " | ".join(cells) + " |\n" for cells in zip(*lines, strict=True))


def marked(words: str) -> str:
    """Words that Markdown is to show as they are."""
    return MARKS.sub(r"\\\g<0>", words)


def to_csv(table: Table) -> str:
    """Comma-separated values with a header line."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.header, *table.rows])
    return out.getvalue()


def to_html(table: Table) -> str:
    """A table for notebooks, with its own little style."""
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in table.header)
    lines = []
    for i, row in enumerate(table.rows):
        cells = (
            _stressed(html.escape(cell), i in column.strong, "<b>", "</b>")
            for column, cell in zip(table.columns, row, strict=True)
        )
        sides = ("left" if column.words else "right" for column in table.columns)
        made = (f'<td style="text-align: {side}">{cell}</td>' for side, cell in zip(sides, cells, strict=True))
        lines.append(f"<tr>{''.join(made)}</tr>")
    caption = f'<caption style="text-align: left">{html.escape(table.title)}</caption>' if table.title else ""
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def print_table(table: Table, console: Console) -> None:
    """The table on a terminal, no wider than that: columns that there is no room for are named below it instead, and
    if that is not enough words are cut, from the first column on; numbers never are. Before a title goes an empty
    line.
    """
    shown, left_out = table, list[str]()
    while _width(shown) > console.width and any(c.spare for c in shown.columns):
        widest = max(shown.columns, key=lambda column: column.spare)
        left_out.insert(0, widest.short or widest.head)
        shown = replace(shown, columns=tuple(c for c in shown.columns if c is not widest))
    for i, column in enumerate(shown.columns):
        if column.words and (over := _width(shown) - console.width) > 0:
            columns = (*shown.columns[:i], _cut(column, over), *shown.columns[i + 1 :])
            shown = replace(shown, columns=columns)
    if table.title:
        console.print()
        console.print(table.title, style="bold", highlight=False)
    console.print(_rich(shown))
    if left_out:
        console.print(f"no room for: {', '.join(left_out)}", style="dim", highlight=False)


def _cut(column: Column, over: int) -> Column:
    """The words so many letters shorter, but for eight of them."""
    room = max(8, max(map(len, column.cells), default=0) - over)
    return replace(column, cells=tuple(c if len(c) <= room else c[: room - 1] + "…" for c in column.cells))


def _width(table: Table) -> int:
    """Letters that a line takes: cells two spaces apart."""
    widths = [max(map(len, [column.short or column.head, *column.aligned])) for column in table.columns]
    return sum(widths) + 2 * len(widths) - 1


def _rich(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=True)
    made.header_style = "bold"
    columns = []
    for column in table.columns:
        cells = [column.short or column.head, *column.aligned]
        if column.tail:  # rich strips spaces behind a word when it pushes it to the right, so this is done here
            cells = [cell.rjust(max(map(len, cells))) for cell in cells]
        justify = "left" if column.words or column.tail else "right"
        made.add_column(Text(cells[0]), justify=justify, no_wrap=True)  # type: ignore[arg-type]
        columns.append(cells[1:])
    for i, row in enumerate(zip(*columns, strict=True)):
        styles = ["bold green" if i in column.strong else "" for column in table.columns]
        made.add_row(*map(Text, row, styles), end_section=i in table.breaks)
    return made


def _stressed(cell: str, strong: bool, before: str, after: str) -> str:
    return f"{before}{cell}{after}" if strong else cell
