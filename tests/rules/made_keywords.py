"""Makes src/autoprune/recipe/keywords.py, the types of Python's options, from the dataclasses of the options.

``python tests/rules/test_docs.py`` writes it anew.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from pages import ROOT

from autoprune.cli import commands, compare, rotate, shrink, speed
from autoprune.recipe.options import RotationOptions, ShrinkOptions, SpeedOptions
from autoprune.recipe.recipe import groups
from autoprune.steps.table import BUILT_IN, healing_options

FILE = ROOT / "src/autoprune/recipe/keywords.py"
HEAD = '''"""The options of Python's front doors, as type checkers and editors know them. Imports no torch.

Made from the dataclasses of the options by ``python tests/rules/test_docs.py``, which a test compares: change nothing
here. Options of steps from other packages count at run time; ``autoprune.Recipe.of`` takes them without types.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

Data = str | PathLike[str] | Iterable[Any]  # what data/given.py takes
Place = str | PathLike[str]

__all__ = [
    "CompareOptions",
    "Data",
    "EvaluateOptions",
    "InspectOptions",
    "Place",
    "PruneOptions",
    "RotateOptions",
    "ShrinkChoices",
    "SpeedChoices",
    "Unpack",
]
'''
# By name: the door, the groups of options that it takes, and what of them means nothing there.
DOORS = {
    "PruneOptions": ("prune", None, ("model",)),
    "EvaluateOptions": ("evaluate", *commands.FLAGS["eval"]),
    "CompareOptions": ("compare", compare.GROUPS, compare.WITHOUT),
    "RotateOptions": ("rotate", rotate.GROUPS, rotate.WITHOUT),
    "ShrinkChoices": ("shrink", shrink.GROUPS, shrink.WITHOUT),
    "SpeedChoices": ("speed", speed.GROUPS, speed.WITHOUT),
    "InspectOptions": ("inspect", ("model", "chosen", "calibration", "run"), commands.FLAGS["inspect"][1]),
}
DATA = ("calibration_data", "eval_data")


def keywords() -> str:
    """The whole file."""
    return HEAD + "".join(_door(name, *facts) for name, facts in DOORS.items())


def _door(name: str, door: str, chosen: tuple[str, ...] | None, without: tuple[str, ...]) -> str:
    lines = [f"    {line}\n" for line in _fields(chosen, {*without, "model"})]
    if chosen is None:
        lines.append("    ratios: Mapping[str, float]\n")
    smaller = (ShrinkOptions, *healing_options().values())
    alone = {"rotate": (RotationOptions,), "shrink": smaller, "speed": (SpeedOptions,)}
    lines += [f"    {line}\n" for options in alone.get(door, ()) for line in _of(options, set())]
    return f'\n\nclass {name}(TypedDict, total=False):\n    """What ``autoprune.{door}`` takes."""\n\n{"".join(lines)}'


def _fields(chosen: tuple[str, ...] | None, without: set[str]) -> Iterator[str]:
    for group in groups():
        wanted = group.name in BUILT_IN if group.step else chosen is None or group.name in chosen
        if wanted and not (group.step and chosen is not None):
            yield from _of(group.type, without)


def _of(group: type, without: set[str]) -> Iterator[str]:
    hints = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        if field.name not in without:
            yield f"{field.name}: {_type(field, hints[field.name])}"


def _type(field: dataclasses.Field[Any], hint: Any) -> str:
    if field.name in DATA:
        return "Data | None" if field.name == "eval_data" else "Data"  # None: measure none
    if typing.get_origin(hint) is tuple:
        return "str | Sequence[str]"
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    words = ["None" if kind is type(None) else kind.__name__ for kind in kinds]
    if field.metadata.get("metavar") == "DIR":
        words[words.index("str")] = "Place"
    if field.name == "sparsity":
        words.insert(1, "float")
    return " | ".join(words)
