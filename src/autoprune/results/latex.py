"""A table as LaTeX: numbers stand below each other by their points, and plain LaTeX is enough to compile it."""

from __future__ import annotations

import re

from autoprune.results.table import Column, Table

SPECIALS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{char: "\\" + char for char in "&%$#_{}"},
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "±": r"$\pm$", "Δ": r"$\Delta$", "→": r"$\to$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "−": "$-$",
    "‖": r"$\|$", "…": r"\ldots{}", "’": "'", "“": "``", "”": "''", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
RULES = r"""% Plain LaTeX is enough. With \usepackage{booktabs} the rules are finer;
% with \usepackage{graphicx} a table that is wider than the line becomes as wide as that.
\providecommand{\toprule}{\hline}
\providecommand{\midrule}{\hline}
\providecommand{\bottomrule}{\hline}
\providecommand{\nowider}[1]{\ifdefined\resizebox
  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}\else#1\fi}
"""
_WHOLE = re.compile(r"\D*[\d,]*")  # what stands before the point
_POWER = re.compile(r"e([+-])0*(\d+)")


def to_latex(table: Table, caption: str = "") -> str:
    """A ``tabular`` with the rules of the booktabs package; with a caption, in a ``table`` of its own.

    A column whose numbers have tails or unequal digits is two, which meet at the point.
    """
    columns = [_Numbers(column) if not column.words else None for column in table.columns]
    kinds = ("l" if made is None else "r@{}l" if made.split else "r" for made in columns)
    heads = [_head(column, made) for column, made in zip(table.columns, columns, strict=True)]
    lines = [rf"\begin{{tabular}}{{{''.join(kinds)}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    for i in range(len(table.rows)):
        cells = [
            escaped(column.cells[i]) if made is None else made.cell(i)
            for column, made in zip(table.columns, columns, strict=True)
        ]
        lines.append(" & ".join(cells) + r" \\")
        if i in table.breaks and i + 1 < len(table.rows):
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if caption:
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption)}}}",
            r"\smallskip",
            r"\nowider{%",
            *lines,
        ]
        lines += ["}", r"\end{table}"]
    return "\n".join([*lines, ""])


def escaped(words: str) -> str:
    """Words as LaTeX prints them."""
    return "".join(SPECIALS.get(char, char) for char in words)


class _Numbers:
    """A column of numbers, whether it is ``split`` at the point, and its cells."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._parts = [_at_point(cell) for cell in column.cells]
        self.split = len({len(rest) for whole, rest in self._parts if any(map(str.isdigit, whole))}) > 1

    def cell(self, line: int) -> str:
        """One cell, or two."""
        whole, rest = self._parts[line]
        parts = [whole, rest] if self.split else [whole + rest]
        strong = line in self._column.strong
        shown = [_number(part) for part in parts]
        shown[1:] = [f"~{part[1:]}" if part.startswith(" ") else part for part in shown[1:]]  # TeX drops a space there
        return " & ".join(_stressed(part, strong=strong) for part in shown)


def _head(column: Column, numbers: _Numbers | None) -> str:
    words = escaped(column.short or column.head)
    return rf"\multicolumn{{2}}{{c}}{{{words}}}" if numbers and numbers.split else words


def _at_point(cell: str) -> tuple[str, str]:
    match = _WHOLE.match(cell)
    end = match.end() if match else 0
    return cell[:end], cell[end:]


def _number(part: str) -> str:
    """With a minus for a hyphen, powers of ten written out, and a thin space before a unit."""
    if part == "-":
        return "--"
    words = escaped(re.sub(r"^-(?=[\d.])", "−", part))
    words = _POWER.sub(lambda m: rf"$\cdot10^{{{'-' * (m[1] == '-')}{m[2]}}}$", words)
    return words.replace(r" \%", r"\,\%")


def _stressed(cell: str, *, strong: bool) -> str:
    return rf"\textbf{{{cell}}}" if strong and cell else cell
