"""`autoprune bench GRID.toml` and ``autoprune.benchmark``: read the grid, run its cells, write the reports."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.bench.grid import make_grid, read_grid
from autoprune.bench.runner import CellResult, run_grid
from autoprune.errors import RecipeError
from autoprune.events import Emit, silent
from autoprune.report.costs import cost_grid
from autoprune.report.frames import rows_frame
from autoprune.report.grid import Grid, grid_to_latex, grid_to_markdown
from autoprune.report.html import render_html
from autoprune.report.tables import comparison_grid, to_csv
from autoprune.report.views import variants_of
from autoprune.report.zeroshot import accuracy_grid, metrics_of
from autoprune.results.types import EvaluationRow, dump_json

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class BenchSummary:
    """All cells of a grid and the reports that were written."""

    title: str
    results: tuple[CellResult, ...]
    reports: tuple[Path, ...]
    seconds: float

    @property
    def rows(self) -> list[EvaluationRow]:
        """The rows of the cells that succeeded."""
        return [result.row for result in self.results if result.row]

    @property
    def failed(self) -> list[CellResult]:
        """The cells that did not."""
        return [result for result in self.results if result.error]

    @property
    def tables(self) -> list[Grid]:
        """Perplexities, then accuracies and costs where they were measured."""
        variants = variants_of(self.rows)
        grids = (
            comparison_grid(self.rows),
            *(accuracy_grid(variants, metric) for metric in metrics_of(variants)),
            cost_grid(variants),
        )
        return [grid for grid in grids if grid.rows]

    def to_pandas(self) -> DataFrame:
        """One line for each cell that succeeded: what it was, perplexities, accuracies, seconds and peak memory."""
        return rows_frame(self.rows)


def benchmark(
    grid: str | Path | Mapping[str, Any], directory: str | Path = "out/bench", *, jobs: int = 1, emit: Emit = silent
) -> BenchSummary:
    """Runs a grid and writes ``results.json``, ``.csv``, ``.md``, ``.tex`` and ``report.html`` into ``directory``.

    ``grid`` is a file, or the same keys as a dictionary: ``{"models": ["demo"], "methods": ["wanda"], "targets":
    [0.5]}``. Every cell is a process of its own; those that are finished in ``directory`` are taken over. Raises:
    RecipeError if the grid can't be read; OutputError if another run is at work in the directory.
    """
    if jobs < 1:
        raise RecipeError(f"--jobs {jobs} is too small; give at least 1")
    start, directory = time.monotonic(), Path(directory)
    chosen = make_grid(grid) if isinstance(grid, Mapping) else read_grid(Path(grid))
    results = tuple(run_grid(chosen, directory, jobs=jobs, emit=emit))
    summary = BenchSummary(chosen.title, results, (), 0.0)
    reports = {"results.json": dump_json([_entry(result) for result in results])}
    if summary.rows:
        command = None if isinstance(grid, Mapping) else f"autoprune bench {Path(grid).name}"
        reports |= {
            "results.csv": to_csv(summary.rows),
            "report.html": render_html(summary.rows, title=chosen.title, command=command),
        }
        reports |= {
            "results.md": "\n".join(map(grid_to_markdown, summary.tables)),
            "results.tex": "\n".join(map(grid_to_latex, summary.tables)),
        }
    for name, text in reports.items():
        (directory / name).write_text(text, encoding="utf-8")
    return dataclasses.replace(
        summary, reports=tuple(directory / name for name in reports), seconds=time.monotonic() - start
    )


def _entry(result: CellResult) -> dict[str, object]:
    return {"cell": result.cell.name, "error": result.error, "cost": result.cost, "row": result.row}
