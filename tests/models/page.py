"""What docs/architectures.md says of one architecture, taken from a tiny model; the page is written by
scripts/list_architectures.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import transformers
from families import SHELLS, TYPES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
COLUMNS = ("class", "blocks", "layers in a block", "coverage", "sub-blocks", "replay", "stays dense")
BESIDE = (*COLUMNS[:-1], "left alone")
Row = dict[str, str]


def count(words: Mapping[str, str]) -> str:
    """How many types of the installed transformers work or not; ``words`` are those of all that was tried."""
    causal, shells = ([words[name] for name in names] for names in (TYPES, SHELLS))
    return (
        f"transformers {transformers.__version__} has {len(causal)} types of causal language models, of which"
        f" {causal.count('works')} work, {causal.count('refused')} are refused and {causal.count('fails')} fail, and"
        f" {len(shells)} shells around a language model without such a type of their own:"
        f" {shells.count('works')}, {shells.count('refused')} and {shells.count('fails')}."
    )


def table(columns: Sequence[str], rows: Mapping[str, Row]) -> str:
    """A Markdown table, one line for every architecture."""
    lines = [f"| architecture | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row[column] for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def read_page() -> dict[str, Row]:
    """The rows of all tables of the page, by architecture."""
    rows: dict[str, Row] = {}
    columns: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if cells and cells[0] == "architecture":
            columns = cells[1:]
        elif cells:
            rows[cells[0]] = dict(zip(columns, cells[1:], strict=True))
    return rows
