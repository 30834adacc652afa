"""Results on disk: ``log_<method>_<target>.txt``, ``zeroshot_<method>_<target>.txt``, and the same as JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autoprune.errors import OutputError
from autoprune.recipe.recipe import CACHES, Recipe
from autoprune.report.accuracy import zeroshot_text
from autoprune.report.tables import perplexity_log
from autoprune.results.codec import UNFINISHED, dump_json, first_difference
from autoprune.results.comparison import comparison_of
from autoprune.results.comparison_tables import comparison_text
from autoprune.results.types import EvaluationRow
from autoprune.storage.files import write_text

MEASURED_BY = {
    "evaluation": "perplexity",
    "zeroshot": "zeroshot",
}  # by group of options: what of a row it says how to measure


def check_report_directory(directory: Path, flag: str) -> None:
    """Sees whether results can be written there, without making anything. Raises: OutputError if they can't."""
    place = next(place for place in (directory, *directory.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        raise OutputError(f"--{flag} {directory}: {place} is a file; choose another directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"--{flag} {directory}: no permission to write in {place}; choose another directory")


def check_earlier(recipe: Recipe, stem: str, labels: tuple[str, str]) -> None:
    """Raises: OutputError if a table of that name is there already and is of another run, unless it may be
    overwritten.
    """
    for flag, directory, name in _places(recipe, stem):
        record, table = directory / f"{name}.json", directory / f"{name}.txt"
        if recipe.output.overwrite or not (record.exists() or table.exists()):
            continue
        remedy = "choose another directory, or replace it with --overwrite"
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
            unmeasured = [group for group, kind in MEASURED_BY.items() if not before[kind]]
            was = {"method": before["method"], "target": before["target"], **_settings(before["settings"], unmeasured)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"--{flag} {directory}: {name} there is no table that autoprune can read ({error}); {remedy}"
            ) from error
        now = {
            "method": labels[0],
            "target": labels[1],
            **_settings(json.loads(dump_json(recipe.to_dict())), unmeasured),
        }
        if difference := first_difference(was, now):
            raise OutputError(f"--{flag} {directory}: {table.name} there is of another run: {difference}; {remedy}")


def _settings(groups: Mapping[str, Any], unmeasured: Sequence[str]) -> dict[str, object]:
    """What a table depends on: neither where things lie, nor how the run behaves, nor what it has no figures of."""
    without = {"output", "run", *unmeasured}
    chosen: dict[str, object] = {}
    for group, options in groups.items():
        if isinstance(options, list):  # the steps: of each its options, by its name
            chosen[group] = {step["name"]: step for step in options}
        elif group not in without:
            chosen[group] = {name: value for name, value in options.items() if (group, name) not in CACHES}
    return chosen


@contextlib.contextmanager
def tables_claimed(recipe: Recipe, stem: str) -> Iterator[None]:
    """While it lasts no other process can make tables of these names in the same directories.

    Raises: OutputError if another one is at it.
    """
    with contextlib.ExitStack() as claims:
        for flag, directory, name in _places(recipe, stem):
            claims.enter_context(claimed(flag, directory, name))
        yield


@contextlib.contextmanager
def claimed(flag: str, directory: Path, name: str) -> Iterator[None]:
    """While it lasts no other process can make files of this name in the directory.

    The lock lies where temporary files do: the directory itself may be one that the run has yet to make.
    Raises: OutputError if another process is at it.
    """
    place = hashlib.sha256(os.fsencode(directory.resolve() / name)).hexdigest()[:32]
    lock = FileLock(Path(tempfile.gettempdir()) / f"autoprune-{place}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"--{flag} {directory}: another autoprune run is making {name} there; wait for it, or choose another"
            " directory"
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def save_row(recipe: Recipe, row: EvaluationRow, stem: str) -> None:
    """Writes what the recipe asks for, as far as it has been measured.

    Raises: OutputError, with the figures, if it can't be written.
    """
    for flag, directory, name in _places(recipe, stem):
        if flag == "save_ppl":
            moved = f"\n{comparison_text(comparison_of(row), places=True)}\n" if row.shifts else ""
            _save(flag, directory / name, perplexity_log([row]) + moved, row)
        elif row.zeroshot:
            _save(flag, directory / name, zeroshot_text(row), row)


def notes_of(recipe: Recipe, stem: str) -> Path | None:
    """Where measurements are noted until all is measured; None where none are saved."""
    places = _places(recipe, stem)
    return places[0][1] / f"{places[0][2]}{UNFINISHED}.json" if places else None


def _places(recipe: Recipe, stem: str) -> list[tuple[str, Path, str]]:
    """Flag, directory and name, without its ending, of every table that the recipe asks for."""
    wanted = (("save_ppl", "log"), ("save_zeroshot", "zeroshot"))
    return [(flag, Path(place), f"{kind}_{stem}") for flag, kind in wanted if (place := getattr(recipe.output, flag))]


def _save(flag: str, stem: Path, text: str, row: EvaluationRow) -> None:
    try:
        for ending, content in (
            (".json", dump_json(row)),
            (".txt", text),
        ):  # each whole or not there, and the one that a later run reads first
            write_text(stem.with_name(stem.name + ending), content)
    except OSError as error:
        raise OutputError(
            f"--{flag} {stem.parent}: can't write there ({error}); what should have been written:\n{text.rstrip()}"
        ) from error
