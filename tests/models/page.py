"""What docs/architectures.md says of one architecture, taken from a tiny model; the page is written by
scripts/list_architectures.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from configs import tiny_ids
from runs import open_store, prune

from autoprune.model.anatomy import Anatomy
from autoprune.model.replay import replay_check
from autoprune.steps.barber import Barber
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import CheckpointStore

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
STRUCTURE = ("class", "blocks", "layers in a block", "coverage", "stays dense")
BEHAVIOUR = ("sub-blocks", "replay")
Row = dict[str, str]


def structure(anatomy: Anatomy) -> Row:
    """The columns that the anatomy alone tells."""
    counts = [len(block.layers) for block in anatomy.blocks]
    dense = [
        name
        for block in anatomy.blocks
        for name, _ in block.unreached
        if _is_matrix(block.module.get_parameter(name), name)
    ]
    return {
        "class": type(anatomy.model).__name__,
        "blocks": f"`{anatomy.name}`",
        "layers in a block": " or ".join(str(count) for count in sorted(set(counts))),
        "coverage": f"{anatomy.coverage:.1%}",
        "stays dense": (
            ", ".join(f"`{name}`" for name in dict.fromkeys(_without_weight(name) for name in dense)) or "–"
        ),
    }


def behaviour(directory: Path) -> Row:
    """The columns for which the blocks have to run."""
    exact = [replay_check(open_store(directory, dtype=dtype), tiny_ids(2)).exact for dtype in ("float32", "bfloat16")]
    results = prune(open_store(directory), (Wanda(), Barber()), tiny_ids())
    orders = dict.fromkeys(tuple(sub.name for sub in result.sub_blocks) for result in results)
    return {
        "sub-blocks": " or ".join(", ".join(f"`{name}`" for name in order) for order in orders),
        "replay": "exact" if all(exact) else "differs",
    }


def beside(store: CheckpointStore) -> str:
    """What of a model with more than a language model is left alone, without its tiny sizes."""
    return ", ".join(f"`{re.sub(r' [(].*', '', part)}`" for part in store.left_alone)


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


def _is_matrix(parameter: torch.Tensor, name: str) -> bool:
    return parameter.dim() > 1 and "norm" not in name and not name.endswith("bias")


def _without_weight(name: str) -> str:
    return name.removesuffix(".weight")
