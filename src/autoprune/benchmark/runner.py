"""Runs the cells of a grid, several at once if wanted; what is finished is never run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from autoprune.benchmark.grid import Cell, Grid
from autoprune.data.cache import VARIABLE
from autoprune.errors import OutputError
from autoprune.model.events import Emit, Notice, Phase, Step, silent
from autoprune.report.results import EvaluationRow, dump_json, row_from_json


@dataclass(frozen=True)
class CellResult:
    """A finished cell: its row, or why there is none; wall seconds and peak resident bytes of its process."""

    cell: Cell
    row: EvaluationRow | None
    error: str | None
    seconds: float
    peak_bytes: int


def run_grid(grid: Grid, directory: Path, *, jobs: int = 1, emit: Emit = silent) -> list[CellResult]:
    """Runs every cell that has no result in ``directory`` yet, and returns all results in the grid's order.

    A cell that fails is recorded and does not stop the others; it is run again next time.
    Raises: OutputError if another run is at work in the directory.
    """
    cells = directory / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / "in-use.lock", timeout=0)
    try:
        with lock:
            todo = [cell for cell in grid.cells if not _finished(cells, cell)]
            if done := len(grid.cells) - len(todo):
                emit(Notice(f"{done} of {len(grid.cells)} cells are finished already and are taken over from {directory}"))
            emit(Phase("cells", total=len(grid.cells)))
            with ThreadPoolExecutor(max_workers=jobs) as pool:
                running = {pool.submit(_run_cell, cells, cell, jobs): cell for cell in todo}
                for finished in as_completed(running):
                    finished.result()
                    done += 1
                    emit(Step(0, 1, running[finished].name, done, len(grid.cells)))
    except Timeout as error:
        raise OutputError(f"{directory}: another bench run is at work there; wait for it or choose another --out") from error
    return [_read(cells, cell) for cell in grid.cells]


def _run_cell(cells: Path, cell: Cell, jobs: int) -> None:
    options, result = cells / f"{cell.key}.options.json", cells / f"{cell.key}.json"
    result.unlink(missing_ok=True)
    options.write_text(dump_json(cell.options), encoding="utf-8")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    shared = cells.parent / "shared"  # token windows, cut by the first cell that needs them
    shared.mkdir(exist_ok=True)
    environment = os.environ | {VARIABLE: str(shared), "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "autoprune.benchmark.cell", str(options), str(result)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not result.is_file():
        lines = ended.stderr.strip().splitlines()
        outcome = {"error": f"exit status {ended.returncode}: {lines[-1] if lines else 'no message'}", "row": None, "seconds": 0.0, "peak_bytes": 0}
        result.write_text(dump_json(outcome), encoding="utf-8")


def _finished(cells: Path, cell: Cell) -> bool:
    path = cells / f"{cell.key}.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["error"] is None


def _read(cells: Path, cell: Cell) -> CellResult:
    raw = json.loads((cells / f"{cell.key}.json").read_text(encoding="utf-8"))
    row = row_from_json(raw["row"]) if raw["row"] else None
    return CellResult(cell, row, raw["error"], raw["seconds"], raw["peak_bytes"])
