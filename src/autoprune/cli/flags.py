"""Flags from the recipe's dataclasses: nothing is written twice."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from autoprune.errors import RecipeError, unknown
from autoprune.recipe.checks import comma_list
from autoprune.recipe.commands import Command
from autoprune.recipe.files import overridden, read_flat
from autoprune.recipe.recipe import groups

COMMANDS = 13  # letters of the longest command, and its indent
FEW = 8  # flags: so many fit into the line that shows how a command is called
METAVARS = {int: "N", float: "X"}  # what a value is called where its option has no word of its own
LONG = 40  # letters of a list that is shown with room to break it


class Layout(argparse.HelpFormatter):
    """Breaks lines between words only, those of headings too; commands stand in one column with what they do."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = COMMANDS  # argparse forgets that commands are indented

    def start_section(self, heading: str | None) -> None:
        """A heading of as many lines as it takes."""
        super().start_section(textwrap.fill(heading, self._width - 1) if heading else heading)


class Parser(argparse.ArgumentParser):
    """Reports a wrong flag as an error of the user's, like every other. Help begins with ``examples``, and names the
    flags once, each with its meaning.
    """

    def __init__(self, *, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(**{"formatter_class": Layout, "allow_abbrev": False, **settings})
        self.examples = examples

    def format_help(self) -> str:
        """Examples, usage, and what argparse has to say."""
        if self.usage is None and len(self._actions) > FEW:
            words = [Layout(self.prog)._format_args(a, a.dest) for a in self._actions if not a.option_strings]
            self.usage = " ".join(["%(prog)s", *words, "[FLAGS]"])
        lines = "".join(f"  {example}\n" for example in self.examples)
        return (f"for example:\n{lines}\n" if lines else "") + super().format_help()

    def parse_known_args(self, *given: Any, **settings: Any) -> Any:
        """Raises: RecipeError for flags that are not known: the command that they were given to knows best."""
        found, rest = super().parse_known_args(*given, **settings)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._meant(rest)}")
        return found, rest

    def _meant(self, words: Sequence[str]) -> str:
        """What a misspelt flag may have been, in brackets."""
        wrong = next((word.partition("=")[0] for word in words if word.startswith("--")), None)
        if wrong is None:
            return ""
        if wrong[2:] in {field.name for group in groups() for field in dataclasses.fields(group.type)}:
            return " (a flag of other commands)"
        close = difflib.get_close_matches(
            wrong.replace("-", "_").replace("__", "--", 1), self._option_string_actions, 1
        )
        return f" (did you mean {close[0]}?)" if close else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raises: RecipeError for a word that is none of the choices."""
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or str(action.metavar)
            self.error(f"{name} {unknown(str(value), map(str, action.choices))}")

    def error(self, message: str) -> NoReturn:
        """Raises: RecipeError instead of leaving the program."""
        raise RecipeError(f"{message}; `{self.prog} --help` lists the {'commands' if self._subparsers else 'flags'}")


def add_flags(
    parser: argparse.ArgumentParser,
    command: Command | None = None,
    *,
    positional: str | None = None,
    optional_model: bool = False,
) -> None:
    """Adds a flag for every option that the command takes; without one, for every option of the recipe and the steps.

    ``positional`` names a field that is given without a flag.
    """
    for options in command.own if command else ():
        add_options(parser, options)
    for group in command.taken() if command else groups():
        without = command.without if command else ()
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
            "metavar": facts.get("metavar") or METAVARS.get(kind),
            "choices": facts.get("choices"),
        }
        if settings["choices"]:
            del settings["metavar"]
    section.add_argument(f"--{field.name}", required=bool(facts.get("required")) and not optional_model, **settings)


def _help(field: dataclasses.Field[Any], facts: dict[str, Any]) -> str:
    default = field.default
    silent = default in (None, "", (), 0, False) or facts.get("required")
    shown = ",".join(default) if isinstance(default, tuple) else str(default)
    shown = shown.replace(",", ", ") if len(shown) > LONG else shown
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
