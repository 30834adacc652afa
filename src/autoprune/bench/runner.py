"""Runs the cells of a grid, several at once if wanted; what is finished is never run again."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autoprune.bench.grid import Cell, Grid
from autoprune.data.cache import VARIABLE
from autoprune.errors import OutputError
from autoprune.events import Emit, Notice, Phase, Work, silent
from autoprune.report.save import check_report_directory
from autoprune.results.codec import dump_json, from_jsonable, row_from_json
from autoprune.results.types import Cost, EvaluationRow

DEVICES = "CUDA_VISIBLE_DEVICES"
PROGRAM = (sys.executable, "-m", "autoprune.bench.cell")


@dataclass(frozen=True)
class CellResult:
    """A finished cell: its row, or why there is none; ``cost`` is None where its process did not come to its end."""

    cell: Cell
    row: EvaluationRow | None
    error: str | None
    cost: Cost | None


class Workers:
    """The processes of the cells under way; they end with this one, however it ends."""

    def __init__(self, cells: Path, jobs: int) -> None:
        self._cells, self._lock, self._stopped = cells, threading.Lock(), False
        self._running: set[subprocess.Popen[bytes]] = set()
        shared = cells.parent / "shared"  # token windows and dense results, made by the first cell that needs them
        shared.mkdir(exist_ok=True)
        threads = os.environ.get("OMP_NUM_THREADS") or max(1, available_cores() // jobs)
        self._slots: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # a GPU for each job, or None: as it is
        devices = visible_devices() if jobs > 1 else []
        for job in range(jobs):
            self._slots.put(devices[job % len(devices)] if devices else None)
        self._environment = os.environ | {
            VARIABLE: str(shared),
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }

    def run(self, cell: Cell) -> None:
        """Runs one cell to its end; what it says goes to a log, which stays if it fails."""
        options, result, log = (self._cells / f"{cell.key}.{kind}" for kind in ("options.json", "json", "log"))
        result.unlink(missing_ok=True)
        options.write_text(dump_json({"name": cell.name, "options": cell.options}), encoding="utf-8")
        device = self._slots.get()
        try:
            with log.open("wb") as said:
                ended = self._wait_for([*PROGRAM, str(options), str(result)], said, device)
        finally:
            self._slots.put(device)
        if ended is None:
            return
        if not result.is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = f"exit status {ended}: {lines[-1] if lines else 'no message'} (see {log})"
            result.write_text(dump_json({"error": reason, "row": None, "cost": None}), encoding="utf-8")
        elif read_outcome(result).get("error") is None:
            log.unlink(missing_ok=True)

    def stop(self) -> None:
        """Ends all that is under way; nothing is started any more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    def _wait_for(self, command: list[str], said: Any, device: str | None) -> int | None:
        """The exit status; None if the work was stopped. ``device`` is the only GPU that the process sees."""
        own = self._environment | ({} if device is None else {DEVICES: device})
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=said, stderr=said)
            self._running.add(process)
        try:
            status = process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
            if process.stdin:
                process.stdin.close()
        return None if self._stopped else status


def available_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has (taskset, containers, clusters)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def visible_devices() -> list[str]:
    """The GPUs of NVIDIA's that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get(DEVICES)) is not None:
        return [word.strip() for word in named.split(",") if word.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def run_grid(grid: Grid, directory: Path, *, jobs: int = 1, emit: Emit = silent) -> list[CellResult]:
    """Runs every cell that has no result in ``directory`` yet, and returns all results in the grid's order.

    A cell that fails is recorded and does not stop the others; it is run again next time.
    Raises: OutputError if another run is at work in the directory, or nothing can be written there.
    """
    check_report_directory(directory, "out")
    cells = directory / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / "in-use.lock", timeout=0):
            _run_missing(grid, cells, jobs, emit)
    except Timeout as error:
        raise OutputError(
            f"{directory}: another bench run is at work there; wait for it or choose another --out"
        ) from error
    return [_read(cells, cell) for cell in grid.cells]


def read_outcome(path: Path) -> dict[str, Any]:
    """What a cell left behind; empty if there is nothing that can be read."""
    try:
        outcome = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return outcome if isinstance(outcome, dict) else {}


def _run_missing(grid: Grid, cells: Path, jobs: int, emit: Emit) -> None:
    total, todo = len(grid.cells), [c for c in grid.cells if not read_outcome(cells / f"{c.key}.json").get("row")]
    if done := total - len(todo):
        emit(Notice(f"{done} of {total} cells are finished already and are taken over from {cells.parent}"))
    emit(Phase("cells", total=total, done=done))
    workers, pool = Workers(cells, jobs), ThreadPoolExecutor(max_workers=jobs)

    def work(cell: Cell) -> None:
        emit(Work(cell.name, done, total))
        workers.run(cell)

    try:
        running = {pool.submit(work, cell): cell for cell in todo}
        for finished in as_completed(running):
            finished.result()
            done += 1
            cell = running[finished]
            emit(Work(cell.name, done, total))
            emit(Notice(f"{done}/{total} {cell.name}: {_said(_read(cells, cell))}"))
    finally:  # also when interrupted: then cells are under way, and others wait
        workers.stop()
        pool.shutdown(cancel_futures=True)


def _said(result: CellResult) -> str:
    """A finished cell in few words."""
    took = f"{result.cost.seconds:.0f} s" if result.cost else ""
    figures = [f"perplexity {p.perplexity:.2f} on {p.source}" for p in result.row.perplexity] if result.row else []
    return ", ".join(filter(None, [*figures, f"FAILED: {result.error}" if result.error else "", took])) or "done"


def _read(cells: Path, cell: Cell) -> CellResult:
    raw = read_outcome(cells / f"{cell.key}.json")
    cost = from_jsonable(Cost, raw.get("cost"))
    row = dataclasses.replace(row_from_json(raw["row"]), cost=cost) if raw.get("row") else None
    return CellResult(cell, row, None if row else raw.get("error") or "no result was written", cost)
