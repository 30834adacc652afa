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

from autoprune.recipe.commands import COMPARE, EVALUATE, INSPECT, ROTATE, SHRINK, SPEED, Command
from autoprune.recipe.recipe import groups
from autoprune.steps.table import BUILT_IN

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
DOORS = {  # by name: the function, and what it takes; prune takes all
    "PruneOptions": ("prune", None),
    "EvaluateOptions": ("evaluate", EVALUATE),
    "CompareOptions": ("compare", COMPARE),
    "RotateOptions": ("rotate", ROTATE),
    "ShrinkChoices": ("shrink", SHRINK),
    "SpeedChoices": ("speed", SPEED),
    "InspectOptions": ("inspect", INSPECT),
}
DATA = ("calibration_data", "eval_data")


STEPS = "StepOptions"  # the base of those that take any steps


def keywords() -> str:
    """The whole file."""
    steps = [group for group in groups() if group.name in BUILT_IN]
    options = [field for group in steps for field in _of(group.type, set())]
    base = _typed(STEPS, "TypedDict", "The options of all steps.", options)
    return HEAD + base + "".join(_door(name, *door) for name, door in DOORS.items())


def _door(name: str, door: str, takes: Command | None) -> str:
    without = {"model", *(takes.without if takes else ())}
    taken = takes.taken() if takes else groups()
    fields = [field for group in taken if not group.step for field in _of(group.type, without)]
    fields += [field for options in (takes.own if takes else ()) for field in _of(options, set())]
    fields += [] if takes else ["ratios: Mapping[str, float]"]
    base = STEPS if any(group.step for group in taken) else "TypedDict"
    return _typed(name, base, f"What ``autoprune.{door}`` takes.", fields)


def _typed(name: str, base: str, about: str, fields: list[str]) -> str:
    lines = "".join(f"    {field}\n" for field in fields)
    return f'\n\nclass {name}({base}, total=False):\n    """{about}"""\n\n{lines}'


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
