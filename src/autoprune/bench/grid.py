"""``GRID.toml`` -> cells: models x methods x targets x seeds, each a complete recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import autoprune
from autoprune.core.sparsity import parse_target
from autoprune.data.mix import split_mix, words_of
from autoprune.errors import AutoPruneError, RecipeError
from autoprune.recipe.checks import short
from autoprune.recipe.recipe import Recipe, recipe_from_flat
from autoprune.steps.classic import StepOptions, step_names
from autoprune.storage.locate import DEMO

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AXES = ("models", "methods", "targets", "seeds")
METHOD_KEYS = ("name", "only")
OF_PRUNED = ("compare",)  # options that mean nothing for the dense model
INPUTS = ("model", "pruned_model", "calibration_data", "eval_data", "tasks_path")


@dataclass(frozen=True)
class Cell:
    """One run of the grid: a name for people, and the flat options of its recipe."""

    name: str
    options: dict[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """Changes when an option, a local file that is read, or the version changes: only then is a finished cell run
        again.
        """
        inputs = [stamps(word) for name in INPUTS for word in _inputs(name, self.options.get(name))]
        facts = {"options": self.options, "inputs": inputs, "version": autoprune.__version__}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

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
    return make_grid({"title": path.stem, **read_toml(path, "grid file")}, str(path))


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """A TOML file as a dictionary. Raises: RecipeError naming it if it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such {kind}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} is no readable TOML: {error}") from error


def make_grid(table: Mapping[str, Any], where: str = "grid") -> Grid:
    """A grid from the keys of a grid file. Raises: RecipeError, beginning with ``where``, as ``read_grid`` does."""
    if unknown := set(table) - {"title", "options", *AXES}:
        raise RecipeError(f"{where}: unknown key {sorted(unknown)[0]!r}; a grid has title, options, {', '.join(AXES)}")
    for axis in AXES:
        if axis != "seeds" and not table.get(axis):
            raise RecipeError(f"{where}: {axis} is missing or empty")
        if not isinstance(table.get(axis, []), (list, tuple)):
            raise RecipeError(f"{where}: {axis} must be a list, even of one")
    if not isinstance(table.get("options", {}), Mapping):
        raise RecipeError(f"{where}: options must be a table of flags without their dashes")
    try:
        cells = tuple(_cells(table))
    except AutoPruneError as error:
        raise RecipeError(f"{where}: {error}") from error
    for cell in cells:
        try:
            _ = cell.recipe
        except AutoPruneError as error:
            raise RecipeError(f"{where}: cell {cell.name}: {error}") from error
    names = [cell.name for cell in cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(
            f"{where}: two cells are called {twice[0]!r}; give each model once, and such methods a name of their own"
        )
    return Grid(str(table.get("title", where)), cells)


def stamps(word: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the local files that a word stands for; empty for what comes from the hub."""
    path = DEMO if word == "demo" else Path(word).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _cells(table: Mapping[str, Any]) -> Iterator[Cell]:
    common = dict(table.get("options", {}))
    models = [str(model) for model in table["models"]]
    briefly = [_short(model) for model in models]
    for model, brief in zip(models, briefly, strict=True):
        called = brief if briefly.count(brief) == 1 else model  # of two directories of one name the whole path
        as_it_is = {key: value for key, value in common.items() if key not in OF_PRUNED}
        yield Cell(f"{called} dense", {**as_it_is, "model": model, "sparsity_ratio": 0.0})
        for target, entry, seed in itertools.product(table["targets"], table["methods"], table.get("seeds", [0])):
            method, kind = _method(entry), _target(target)
            if not isinstance(only := method.get("only", [target]), (list, tuple)):
                raise RecipeError(f"only {short(only)} of a method is no list of targets; give such as ['2:4']")
            if str(target) not in map(str, only):
                continue
            options = {k: v for k, v in method.items() if k not in METHOD_KEYS}
            name = method.get("name") or method_word(options)
            options = {**common, **options, **kind, "model": model, "seed": seed}
            yield Cell(f"{called} {name} {target} seed {seed}", options)


def method_word(options: Mapping[str, Any]) -> str:
    """The steps of an entry in one word. Raises: RecipeError if it names them in two ways."""
    names = {field.name for field in dataclasses.fields(StepOptions)} & set(options)
    steps = options.get("steps", ())
    if not isinstance(steps, (str, list, tuple)):
        raise RecipeError(f"steps {short(steps)} of a method is no list of words; give such as ['wanda', 'refit']")
    steps = tuple(steps.replace(" ", "").split(",") if isinstance(steps, str) else map(str, steps))
    chosen = StepOptions(**{**{name: options[name] for name in names}, "steps": steps})
    if chosen.effort:
        return f"effort {chosen.effort}"
    return "+".join([*(["given"] if chosen.pruned_model else []), *step_names(chosen)])


def _method(entry: Any) -> dict[str, Any]:
    """A word is short for its steps: ``"a+b"`` for ``{steps = ["a", "b"]}``."""
    return dict(entry) if isinstance(entry, Mapping) else {"steps": str(entry).split("+")}


def _target(target: Any) -> dict[str, Any]:
    word, ratio = (target, None) if isinstance(target, str) else ("unstructured", target)
    if parse_target(word, ratio) is None:
        raise RecipeError(f"target {target!r} prunes nothing; the dense model is measured anyway")
    return {"sparsity_type": word} if ratio is None else {"sparsity_type": word, "sparsity_ratio": ratio}


def _inputs(name: str, value: Any) -> list[str]:
    """The words of an option that may be files; of a mix of texts, its sources."""
    with contextlib.suppress(AutoPruneError):  # what is wrong with it is told where the grid is checked
        if name == "calibration_data" and isinstance(value, str) and split_mix(value):
            return words_of(value)
    return _words(value)


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [str(part) for part in value] if isinstance(value, (list, tuple)) else [] if value is None else [str(value)]


def _short(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]
