"""``GRID.toml`` -> cells: models x methods x targets x seeds, each a complete recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.core.sparsity import parse_target
from autoprune.errors import AutoPruneError, RecipeError
from autoprune.recipe import Recipe, recipe_from_flat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AXES = ("models", "methods", "targets", "seeds")
METHOD_KEYS = ("name", "only")


@dataclass(frozen=True)
class Cell:
    """One run of the grid: a name for people, and the flat options of its recipe."""

    name: str
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """Changes when any option changes: a finished cell is only taken over if its key is the same."""
        return hashlib.sha256(json.dumps(self.options, sort_keys=True, default=list).encode()).hexdigest()[:16]

    @property
    def recipe(self) -> Recipe:
        """The cell's recipe. Raises: RecipeError if its options are impossible together."""
        return recipe_from_flat(self.options)


@dataclass(frozen=True)
class Grid:
    """All cells, in the order in which they are run: first the dense model, then the methods."""

    title: str
    cells: tuple[Cell, ...]


def read_grid(path: Path) -> Grid:
    """Reads a grid file; see docs/benchmarks.md for its form.

    Raises: RecipeError naming the file and the key, method or target that can't be used.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such grid file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} is no readable TOML: {error}") from error
    if unknown := set(table) - {"title", "options", *AXES}:
        raise RecipeError(f"{path}: unknown key {sorted(unknown)[0]!r}; a grid has title, options, {', '.join(AXES)}")
    for axis in ("models", "methods", "targets"):
        if not table.get(axis):
            raise RecipeError(f"{path}: {axis} is missing or empty")
    cells = tuple(_cells(table))
    for cell in cells:
        try:
            _ = cell.recipe
        except AutoPruneError as error:
            raise RecipeError(f"{path}: cell {cell.name}: {error}") from error
    if len({cell.name for cell in cells}) < len(cells):
        raise RecipeError(f"{path}: two cells have the same name; give every entry of methods a name of its own")
    return Grid(str(table.get("title", path.stem)), cells)


def _cells(table: dict[str, Any]) -> Iterator[Cell]:
    common = dict(table.get("options", {}))
    for model in table["models"]:
        yield Cell(f"{_short(model)} dense", {**common, "model": model, "sparsity_ratio": 0.0})
        for target, method, seed in itertools.product(table["targets"], table["methods"], table.get("seeds", [0])):
            kind = {"sparsity_type": target} if isinstance(target, str) else {"sparsity_type": "unstructured", "sparsity_ratio": float(target)}
            parse_target(kind["sparsity_type"], kind.get("sparsity_ratio"))
            if str(target) not in [str(t) for t in method.get("only", [target])]:
                continue
            options = {**common, **{k: v for k, v in method.items() if k not in METHOD_KEYS}, **kind, "model": model, "seed": seed}
            name = method.get("name") or method.get("prune_method", "wanda") + ("+barber" if method.get("prune_barber") else "")
            yield Cell(f"{_short(model)} {name} {target} seed {seed}", options)


def _short(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]


def flat_options(recipe: Recipe) -> dict[str, Any]:
    """The inverse of ``recipe_from_flat``."""
    return {name: value for group in dataclasses.asdict(recipe).values() for name, value in group.items()}
