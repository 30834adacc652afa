"""Results on disk: ``log_<method>_<threshold>.txt``, ``zeroshot_<method>_<threshold>.txt``, and the same as JSON."""

from __future__ import annotations

import os
from pathlib import Path

from autoprune.errors import OutputError
from autoprune.recipe import Recipe
from autoprune.report.results import EvaluationRow, dump_json
from autoprune.report.tables import perplexity_log
from autoprune.report.zeroshot import zeroshot_table


def check_report_directory(directory: Path, flag: str) -> None:
    """Sees whether results can be written there, without making anything. Raises: OutputError if they can't."""
    place = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not place.is_dir():
        raise OutputError(f"--{flag} {directory}: {place} is a file; choose another directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"--{flag} {directory}: no permission to write in {place}; choose another directory")


def save_row(recipe: Recipe, row: EvaluationRow) -> None:
    """Writes what the recipe asks for. Raises: OutputError if it can't be written."""
    stem = _stem(recipe, dense=row.pruning is None)
    if recipe.output.save_ppl:
        _save("save_ppl", Path(recipe.output.save_ppl) / f"log_{stem}", perplexity_log([row]), row)
    if recipe.output.save_zeroshot and row.zeroshot:
        _save("save_zeroshot", Path(recipe.output.save_zeroshot) / f"zeroshot_{stem}", zeroshot_table(row), row)


def notes_of(recipe: Recipe, *, dense: bool) -> Path | None:
    """Where perplexities are noted until all is measured; None where none is saved."""
    return Path(recipe.output.save_ppl) / f"log_{_stem(recipe, dense=dense)}.unfinished.json" if recipe.output.save_ppl else None


def _stem(recipe: Recipe, *, dense: bool) -> str:
    return f"{'dense' if dense else recipe.pruning.prune_method}_{recipe.barber.threshold:g}"


def _save(flag: str, stem: Path, text: str, row: EvaluationRow) -> None:
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_name(stem.name + ".txt").write_text(text, encoding="utf-8")
        stem.with_name(stem.name + ".json").write_text(dump_json(row), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--{flag} {stem.parent}: can't write there ({error})") from error
