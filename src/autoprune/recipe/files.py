"""Recipes in files: TOML or JSON, by groups or flat, or the ``autoprune.json`` of a result. Imports no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import RecipeError
from autoprune.recipe.options import PROTOCOLS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STEPS = "steps"  # the key under which a record lists the steps
RATIOS = "ratios"  # the one option that is a table by itself
# Options that say one thing together: whoever gives one of the first replaces all of the second.
TOGETHER = (
    (("sparsity", "sparsity_type"), ("sparsity", "sparsity_type", "sparsity_ratio")),
    (("sparsity_ratio",), ("sparsity", "sparsity_ratio")),
    (("ratio", RATIOS), ("ratio", RATIOS)),
    (("protocol",), ("protocol", *(name for fixed in PROTOCOLS.values() for name in fixed))),
    (
        (STEPS, "prune_method", "effort", "pruned_model"),
        (STEPS, "prune_method", "prune_barber", "effort", "pruned_model"),
    ),
)


def read_flat(path: Path) -> dict[str, Any]:
    """The options in a file by name. Raises: RecipeError if it can't be read or holds no recipe."""
    if path.is_dir():
        inside = path / "autoprune.json"
        raise RecipeError(
            f"--recipe {path}: is a directory; give a file in it{f', {inside}' if inside.is_file() else ''}"
        )
    try:
        raw = path.read_bytes()
        found = tomllib.loads(raw.decode("utf-8")) if path.suffix.lower() == ".toml" else json.loads(raw)
    except OSError as error:
        raise RecipeError(f"--recipe {path}: can't be read ({error.strerror or error}); check the path") from error
    except (ValueError, RecursionError) as error:  # of TOML, JSON and UTF-8
        kind = "TOML" if path.suffix.lower() == ".toml" else "JSON (TOML is read from files that end in .toml)"
        raise RecipeError(f"--recipe {path}: is no {kind}: {error}") from error
    if isinstance(found, dict) and "format" in found:  # of a result
        if "recipe" not in found:
            raise RecipeError(f"--recipe {path}: is the record of a model that was not pruned, so no recipe is in it")
        found = found["recipe"]
    if not isinstance(found, dict):
        raise RecipeError(f"--recipe {path}: holds a {type(found).__name__}; it must be a table of options")
    return flat_of(found)


def flat_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name from a record of groups, of format 1 or 2, or from one that is flat already."""
    values: dict[str, Any] = {}
    for name, group in record.items():
        if name == STEPS and isinstance(group, list) and all(isinstance(step, dict) for step in group):
            values[STEPS] = tuple(step["name"] for step in group)
            for step in group:
                values |= {key: value for key, value in step.items() if key != "name"}
        elif isinstance(group, Mapping) and name != RATIOS:
            values |= group
        else:
            values[name] = group
    if values.get("pruned_model") is None and not values.get(STEPS, True):
        del values[STEPS]
    return {key: value for key, value in values.items() if value is not None}


def overridden(beneath: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others over them; where several say one thing together, the new ones replace them all."""
    gone = {name for given, together in TOGETHER if set(given) & set(over) for name in together}
    if "model" in over and beneath.get("model") not in (None, str(over["model"])):
        gone.add("revision")  # of another model
    return {**{name: value for name, value in beneath.items() if name not in gone}, **over}
