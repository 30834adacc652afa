"""`autoprune bench GRID.toml`: read the grid, run its cells, write the reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.benchmark.grid import read_grid
from autoprune.benchmark.runner import CellResult, run_grid
from autoprune.model.events import Emit, silent
from autoprune.report.html import render_html
from autoprune.report.results import EvaluationRow, dump_json
from autoprune.report.tables import to_csv, to_latex, to_markdown


@dataclass(frozen=True)
class BenchSummary:
    """All cells of a grid and the reports that were written."""

    title: str
    results: tuple[CellResult, ...]
    reports: tuple[Path, ...]

    @property
    def rows(self) -> list[EvaluationRow]:
        """The rows of the cells that succeeded."""
        return [result.row for result in self.results if result.row]

    @property
    def failed(self) -> list[CellResult]:
        """The cells that did not."""
        return [result for result in self.results if result.error]


def bench(grid_file: Path, directory: Path, *, jobs: int = 1, emit: Emit = silent) -> BenchSummary:
    """Runs a grid and writes ``results.json``, ``.csv``, ``.md``, ``.tex`` and ``report.html`` into ``directory``.

    Raises: RecipeError if the grid can't be read; OutputError if another run is at work in the directory.
    """
    grid = read_grid(grid_file)
    results = tuple(run_grid(grid, directory, jobs=jobs, emit=emit))
    rows = [result.row for result in results if result.row]
    reports = {"results.json": dump_json([_entry(result) for result in results])}
    if rows:
        page = render_html(rows, title=grid.title, command=f"autoprune bench {grid_file.name}")
        reports |= {"results.csv": to_csv(rows), "results.md": to_markdown(rows), "results.tex": to_latex(rows), "report.html": page}
    for name, text in reports.items():
        (directory / name).write_text(text, encoding="utf-8")
    return BenchSummary(grid.title, results, tuple(directory / name for name in reports))


def _entry(result: CellResult) -> dict[str, object]:
    return {"cell": result.cell.name, "error": result.error, "seconds": result.seconds, "peak_bytes": result.peak_bytes, "row": result.row}
