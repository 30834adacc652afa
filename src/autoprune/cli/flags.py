"""Flags from the recipe's dataclasses: nothing is written twice."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from autoprune.errors import RecipeError
from autoprune.recipe.checks import comma_list
from autoprune.recipe.files import overridden, read_flat
from autoprune.recipe.recipe import groups


class Parser(argparse.ArgumentParser):
    """Reports a wrong flag as an error of the user's, like every other."""

    def error(self, message: str) -> NoReturn:
        """Raises: RecipeError instead of leaving the program; a misspelt flag is told what it may have been."""
        known = [f"--{field.name}" for group in groups() for field in dataclasses.fields(group.type)]
        wrong = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        if message.startswith("unrecognized arguments") and wrong:
            close = difflib.get_close_matches(wrong[0].replace("-", "_").replace("__", "--", 1), known, 1)
            hint = "a flag of other commands" if wrong[0] in known else f"did you mean {close[0]}?" if close else ""
            message += f" ({hint})" if hint else ""
        raise RecipeError(f"{message}; `{self.prog} --help` lists the flags")


def add_flags(
    parser: argparse.ArgumentParser,
    chosen: Sequence[str] | None = None,
    without: Sequence[str] = (),
    *,
    positional: str | None = None,
    optional_model: bool = False,
) -> None:
    """Adds a flag for every field of the recipe's option groups (all, or the ``chosen`` ones), but for those
    ``without``. With the choice of steps come the steps' own.

    ``positional`` names a field that is given without a flag.
    """
    for group in groups():
        if chosen is not None and ("chosen" if group.step else group.name) not in chosen:
            continue
        add_options(parser, group.type, without, positional=positional, optional_model=optional_model)


def add_options(
    parser: argparse.ArgumentParser,
    options: type[Any],
    without: Sequence[str] = (),
    *,
    positional: str | None = None,
    optional_model: bool = False,
) -> None:
    """Adds a flag for every field of one dataclass of options."""
    about = (options.__doc__ or options.__name__).split("\n")[0].split("(")[0].strip().rstrip(".")
    section = parser.add_argument_group(about)
    hints = typing.get_type_hints(options)
    for field in (field for field in dataclasses.fields(options) if field.name not in without):
        _add_flag(section, field, hints[field.name], positional, optional_model)


def given(values: argparse.Namespace, *more: type) -> dict[str, Any]:
    """The options that the user gave, of a recipe and of ``more`` dataclasses; those left out keep their defaults."""
    known = {f.name for group in (*(g.type for g in groups()), *more) for f in dataclasses.fields(group)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(values).items()
        if name in known
    }


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds ``--recipe``, which is no option of the recipe itself."""
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        type=Path,
        help="options from a TOML or JSON file, or from the autoprune.json of a result; flags go over them",
    )


def beneath(values: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """The options that were given, over those of the file that ``--recipe`` named. Raises: RecipeError."""
    return values if path is None else overridden(read_flat(path), values)


def _add_flag(
    section: argparse._ArgumentGroup,
    field: dataclasses.Field[Any],
    hint: Any,
    positional: str | None,
    optional_model: bool,
) -> None:
    facts = dict(field.metadata)
    settings: dict[str, Any] = {"help": _help(field, facts), "default": argparse.SUPPRESS}
    if field.name == positional:
        section.add_argument(field.name, metavar=facts.get("metavar"), **settings)
        return
    kind = _plain(hint)
    if kind is bool:
        settings["action"] = "store_true"
    elif facts.get("comma"):
        settings |= {"type": comma_list, "metavar": facts.get("metavar")}
    elif typing.get_origin(kind) is tuple:
        settings |= {"action": "append", "metavar": facts.get("metavar")}
    else:
        settings |= {
            "type": _READERS.get(kind, kind),
            "metavar": facts.get("metavar"),
            "choices": facts.get("choices"),
        }
        if settings["choices"]:
            del settings["metavar"]
    section.add_argument(f"--{field.name}", required=bool(facts.get("required")) and not optional_model, **settings)


def _help(field: dataclasses.Field[Any], facts: dict[str, Any]) -> str:
    default = field.default
    silent = default in (None, "", (), 0, False) or facts.get("required")
    shown = ",".join(default) if isinstance(default, tuple) else default
    return facts.get("help", "") + ("" if silent else f" (default {shown})")


def _plain(hint: Any) -> Any:
    """``T`` of ``T | None``."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    return int(text)


_number.__name__, _whole.__name__ = "number", "whole number"  # argparse quotes these in its errors
_READERS = {float: _number, int: _whole}
