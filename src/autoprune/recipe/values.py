"""A user's values as the options' types want them. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import RecipeError
from autoprune.recipe.checks import comma_list

_WORDS = {str: "a word", int: "a whole number", float: "a number", bool: "true or false", type(None): "None"}


def with_sparsity(values: dict[str, Any]) -> dict[str, Any]:
    """``sparsity`` as type and ratio. Raises: RecipeError if it says the same as another option, or nothing."""
    if isinstance(ratios := values.pop("ratios", None), Mapping):
        values = {**values, "ratio": tuple(f"{pattern}={ratio}" for pattern, ratio in ratios.items())}
    word = values.pop("sparsity", None)
    if word is None:
        return values
    for name in ("sparsity_ratio", "sparsity_type"):
        if values.get(name) is not None:
            raise RecipeError(f"--sparsity and --{name} both name the target; leave out one of the two")
    if ":" in str(word):
        return {**values, "sparsity_type": str(word)}
    try:
        return {**values, "sparsity_ratio": float(word)}
    except (TypeError, ValueError) as error:
        raise RecipeError(f"--sparsity {one_line(word)} is neither a ratio such as 0.5 nor N:M such as 2:4") from error


def as_declared(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """A value from Python or TOML as the option's type wants it: paths become words, lists tuples, one word a list of
    one.

    Raises: RecipeError if it is of another type.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if field.metadata.get("place") and isinstance(value, str) and value.startswith("~"):
        value = str(Path(value).expanduser())
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str):
            return comma_list(value) if field.metadata.get("comma") else (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(part, (str, os.PathLike)) for part in value):
            return tuple(os.fspath(part) for part in value)
        raise RecipeError(f"--{field.name} {one_line(value)} is no list of words")
    kinds = typing.get_args(hint) or (hint,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    # The ratio has a judge of its own, core.sparsity.
    if float in kinds and (whole or field.name == "sparsity_ratio"):
        return value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in kinds)
        raise RecipeError(f"--{field.name} {one_line(value)} is of the wrong kind; it must be {wanted}")
    return value


def one_line(value: object) -> str:
    """A user's value as an error quotes it: a line of it, no more."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}…"
