"""Results on disk: ``log_<method>_<threshold>.txt`` and the same as JSON."""

from __future__ import annotations

from pathlib import Path

from autoprune.errors import OutputError
from autoprune.recipe import Recipe
from autoprune.report.results import EvaluationRow, dump_json
from autoprune.report.tables import perplexity_log


def check_report_directory(directory: Path) -> None:
    """Makes the directory. Raises: OutputError if that is impossible."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--save_ppl {directory}: can't make this directory ({error}); choose another") from error


def save_perplexity(directory: Path, row: EvaluationRow, recipe: Recipe) -> tuple[Path, Path]:
    """Writes the aligned table and the JSON, and returns their paths. Raises: OutputError if they can't be written."""
    method = "dense" if row.pruning is None else recipe.pruning.prune_method
    stem = f"log_{method}_{recipe.barber.threshold:g}"
    try:
        text = directory / f"{stem}.txt"
        text.write_text(perplexity_log([row]), encoding="utf-8")
        (directory / f"{stem}.json").write_text(dump_json(row), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--save_ppl {directory}: can't write there ({error})") from error
    return text, directory / f"{stem}.json"
