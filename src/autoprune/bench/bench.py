"""`autoprune bench GRID.toml` and ``autoprune.benchmark``: read a grid, check it, run its cells, write the reports."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.bench.grid import Grid, make_grid, read_grid
from autoprune.bench.runner import CellResult, run_grid
from autoprune.data.mix import words_of
from autoprune.data.sources import parse_source
from autoprune.data.windows import CALIBRATION_FLAG
from autoprune.errors import AutoPruneError, RecipeError
from autoprune.events import Emit, Phase, silent
from autoprune.recipe.checks import place_word, short
from autoprune.recipe.recipe import Recipe
from autoprune.report.needs import check_pages
from autoprune.report.progress import following
from autoprune.report.publish import formats, tables_of
from autoprune.results.codec import dump_json
from autoprune.results.shown import screen
from autoprune.results.table import Table, to_html, to_text
from autoprune.results.tidy import Results
from autoprune.results.types import EvaluationRow
from autoprune.run.sizes import parse_memory
from autoprune.storage.locate import locate
from autoprune.storage.source import open_checkpoint

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
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
    def tables(self) -> list[Table]:
        """Perplexities with changes and costs, then accuracies where they were measured."""
        return tables_of(Results(self.rows))

    def __repr__(self) -> str:
        lines = [line for table in self.tables[:1] for line in to_text(table).splitlines()]
        failed = [f"failed: {result.cell.name}: {result.error}" for result in self.failed]
        return screen(f"{self.title}: {len(self.results)} cells, {len(self.failed)} failed", [*failed, *lines])

    def _repr_html_(self) -> str:
        return "".join(map(to_html, self.tables))

    def to_pandas(self) -> DataFrame:
        """One line for each cell that succeeded: what it was, perplexities, accuracies, seconds and peak memory."""
        return Results(self.rows).wide()


def benchmark(
    grid: str | Path | Mapping[str, Any],
    directory: str | Path = "out/bench",
    *,
    jobs: int = 1,
    emit: Emit | None = None,
    quiet: bool = False,
) -> BenchSummary:
    """Runs a grid and writes ``results.json``, ``.csv``, ``.md``, ``.tex`` and ``report.html`` into ``directory``.

    ``grid`` is a file, or the same keys as a dictionary: ``{"models": ["demo"], "methods": ["wanda"], "targets":
    [0.5]}``. Every cell is a process of its own; those that are finished in ``directory`` are taken over; of several
    ``jobs`` each has a GPU of its own as far as there are any. Raises: RecipeError if the grid can't be read, or a
    cell names a step, a model, a text or a task that is not there; OutputError if another run is at work in the
    directory.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise RecipeError(f"--jobs {short(jobs)} is no number of processes; give a whole number, at least 1")
    check_pages("autoprune bench")
    start, directory = time.monotonic(), place_word(directory, "directory")
    chosen = make_grid(grid) if isinstance(grid, Mapping) else read_grid(place_word(grid, "grid"))
    with following(emit, quiet=quiet) as seen:
        seen(Phase("checking the grid"))
        check_cells(chosen, seen)
        results = tuple(run_grid(chosen, directory, jobs=jobs, emit=seen))
    summary = BenchSummary(chosen.title, results, (), 0.0)
    entries = [{"cell": r.cell.name, "error": r.error, "cost": r.cost, "row": r.row} for r in results]
    reports = {"results.json": dump_json(entries)}
    if summary.rows:
        command = None if isinstance(grid, Mapping) else f"autoprune bench {Path(grid).name}"
        reports |= formats(summary.rows, title=chosen.title, command=command)
    for name, text in reports.items():
        (directory / name).write_text(text, encoding="utf-8")
    return dataclasses.replace(
        summary, reports=tuple(directory / name for name in reports), seconds=time.monotonic() - start
    )


def check_cells(grid: Grid, emit: Emit = silent) -> None:
    """Looks for all that the cells will need, each once. Raises: AutoPruneError naming the cell and what it lacks."""
    seen = set()
    for cell in grid.cells:
        recipe = cell.recipe
        texts = [("--eval_data", word) for word in recipe.evaluation.eval_data]
        models = [(recipe.model.model, recipe.model.revision), (recipe.chosen.pruned_model, None)]
        try:
            if recipe.run.memory:
                parse_memory(recipe.run.memory)
            if recipe.target is not None:
                texts += [(CALIBRATION_FLAG, word) for word in words_of(recipe.calibration.calibration_data)]
            for flag, word in texts:
                if (flag, word) not in seen:
                    parse_source(word, flag)
            for model in models:
                if model[0] and model not in seen:
                    _check_model(model[0], recipe, model[1])
            if recipe.zeroshot.tasks and recipe.zeroshot not in seen:
                from autoprune.evaluation.tasks import check_tasks

                check_tasks(recipe.zeroshot, emit)
        except AutoPruneError as error:
            raise type(error)(f"cell {cell.name}: {error}") from error
        seen |= {*texts, *models, recipe.zeroshot}


def _check_model(word: str, recipe: Recipe, revision: str | None) -> None:
    """Raises: ModelError if there is no such model, or if its files are not whole."""
    place = locate(word, recipe.model.cache_dir, revision)
    if place.is_dir():  # a GGUF file would be read as a whole
        open_checkpoint(place)
