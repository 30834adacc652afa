"""`autoprune reproduce NAME`: runs a published table again and sets each result beside its value and tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.bench.grid import Cell, Grid, method_word, read_toml
from autoprune.bench.runner import CellResult, run_grid
from autoprune.errors import RecipeError
from autoprune.events import Emit, silent
from autoprune.results.table import Table, from_rows

PUBLISHED = Path(__file__).resolve().parent / "published.toml"


@dataclass(frozen=True)
class Comparison:
    """One published value, what came out here, and the verdict: pass, differs, or could not run."""

    row: str
    published: float
    measured: float | None
    tolerance: float  # relative
    reason: str | None  # why it could not run

    @property
    def verdict(self) -> str:
        """``pass`` within the tolerance, ``differs`` outside, ``could not run`` without a value."""
        if self.measured is None:
            return "could not run"
        return "pass" if abs(self.measured - self.published) <= self.tolerance * self.published else "differs"


@dataclass(frozen=True)
class Reproduction:
    """A table, compared."""

    name: str
    source: str
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether every value was reproduced."""
        return all(comparison.verdict == "pass" for comparison in self.comparisons)

    @property
    def table(self) -> Table:
        """The comparison, line by line."""
        lines = []
        for c in self.comparisons:
            here = "-" if c.measured is None else f"{c.measured:.4g}"
            apart = "-" if c.measured is None else f"{c.measured / c.published - 1:+.2%}".replace("-0.00%", "+0.00%")
            within = f"±{c.tolerance:.0%}" if c.tolerance >= 0.01 else f"±{c.tolerance:.2%}"
            lines.append((c.row, f"{c.published:.4g}", here, apart, within, c.verdict))
        return Table(from_rows(["row", "published", "here", "apart", "tolerance", "verdict"], lines))


def read_tables(path: Path = PUBLISHED) -> dict[str, dict[str, Any]]:
    """All published tables by name. Raises: RecipeError naming the file, and the table and key that can't be used."""
    tables = read_toml(path, "file of published values")
    for name, table in tables.items():
        _check_table(f"{path}: table {name}", table)
    return tables


def reproduce(
    name: str,
    directory: Path,
    *,
    jobs: int = 1,
    tables: Path = PUBLISHED,
    overrides: Mapping[str, Any] | None = None,
    emit: Emit = silent,
) -> Reproduction:
    """Runs table ``name``; ``overrides`` replace its options, such as a local ``model`` or ``calibration_data``.

    Raises: RecipeError naming the tables that exist if there is none of that name; OutputError as ``run_grid`` does.
    """
    known = read_tables(tables)
    if name not in known:
        raise RecipeError(f"there is no published table {name!r}; tables: {', '.join(sorted(known))}")
    if jobs < 1:
        raise RecipeError(f"--jobs {jobs} is too small; give at least 1")
    table = known[name]
    cells = [_cell(table, row, overrides or {}) for row in table["rows"]]
    for cell in cells:
        _ = cell.recipe
    results = run_grid(Grid(name, tuple(cells)), directory, jobs=jobs, emit=emit)
    compared = tuple(
        _compare(row, result, table["tolerance"]) for row, result in zip(table["rows"], results, strict=True)
    )
    return Reproduction(name, table["source"], compared)


def _check_table(where: str, table: Any) -> None:
    if not isinstance(table, dict) or not {"source", "tolerance", "rows", "options"} <= set(table):
        raise RecipeError(f"{where} must have source, tolerance, rows and options")
    for row in table["rows"]:
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("value"), (int, float))
            or row["value"] <= 0
            or not isinstance(row.get("method"), str)
        ):
            raise RecipeError(f"{where}: every row needs a method and a positive value, unlike {row}")
        if row["method"] != "dense" and "target" not in row:
            raise RecipeError(f'{where}: row {row["method"]} needs a target, such as 0.5 or "2:4"')


def _cell(table: dict[str, Any], row: dict[str, Any], overrides: Mapping[str, Any]) -> Cell:
    options = {**table["options"], **overrides}
    target = row.get("target")
    if row["method"] == "dense":
        return Cell(_label(row), {**options, "sparsity_ratio": 0.0})
    kind = {"sparsity_type": target} if isinstance(target, str) else {"sparsity_ratio": target}
    return Cell(_label(row), {**options, "prune_method": row["method"], **kind, **row.get("options", {})})


def _label(row: dict[str, Any]) -> str:
    steps = method_word({**row.get("options", {}), "prune_method": row["method"]})
    return f"{steps} {row['target']}" if "target" in row else steps


def _compare(row: dict[str, Any], result: CellResult, tolerance: float) -> Comparison:
    measured = result.row.perplexity[0].perplexity if result.row and result.row.perplexity else None
    return Comparison(_label(row), row["value"], measured, row.get("tolerance", tolerance), result.error)
