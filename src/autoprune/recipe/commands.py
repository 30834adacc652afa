"""Which options a command takes, and Python's function of its name: what means nothing to it is no flag on the command
line, and refused in Python. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autoprune.errors import RecipeError
from autoprune.recipe.options import RotationOptions, ShrinkOptions, SpeedOptions
from autoprune.recipe.recipe import Group, groups
from autoprune.steps.table import healing_options


@dataclass(frozen=True)
class Command:
    """Some groups of the recipe's options ``without`` a few of them, and the command's ``own``."""

    name: str  # of the function
    groups: tuple[str, ...]  # with "chosen", the choice of steps, come the steps' options
    without: tuple[str, ...]  # what means nothing here, or is given otherwise
    own: tuple[type[Any], ...] = ()

    def taken(self) -> list[Group]:
        """The groups, in the order in which help lists them."""
        return [group for group in groups() if ("chosen" if group.step else group.name) in self.groups]

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises: RecipeError for an option that means nothing here."""
        known = _names(self.own) | (_names(group.type for group in self.taken()) - {*self.without, "model"})
        if not (odd := sorted(set(options) - known)):
            return
        misspelt = odd[0] not in _names(group.type for group in groups())
        close = difflib.get_close_matches(odd[0], known, 1) if misspelt else []
        remedy = f"did you mean {close[0]!r}?" if close else "leave it out;"
        usable = ", ".join(sorted(known))
        raise RecipeError(f"option {odd[0]!r} means nothing to {self.name}; {remedy} known: {usable}")


def _names(types: Iterable[type[Any]]) -> set[str]:
    return {field.name for options in types for field in dataclasses.fields(options)}


_PRUNED = ("save_model", "delete", "no_dense")  # about a pruned model, and a dense one beside it
_SAVED = ("save_ppl", "save_zeroshot")
EVALUATE = Command(
    "evaluate",
    ("model", "calibration", "evaluation", "zeroshot", "output", "run"),
    (*_PRUNED, "calibration_data", "nsamples", "compare"),
)
INSPECT = Command(
    "inspect",
    ("model", "chosen", "calibration", "run"),
    (
        *("prune_method", "prune_barber", "pruned_model"),
        *("calibration_data", "seed", "datasets_cache_dir", "protocol"),
        *("memory", "activations", "quiet", "no_dense"),
    ),
)
COMPARE = Command(
    "compare",
    EVALUATE.groups,
    ("model", *_PRUNED, *_SAVED, "calibration_data", "nsamples", "seed", "protocol", "compare"),
)
ROTATE = Command(
    "rotate",
    ("model", "calibration", "output", "run"),
    ("model", *_PRUNED, *_SAVED, "protocol", "resume", "memory"),
    (RotationOptions,),
)
SHRINK = Command(
    "shrink",
    ROTATE.groups,
    ("model", *_PRUNED, *_SAVED, "protocol"),
    (ShrinkOptions, *healing_options().values()),
)
SPEED = Command(
    "speed",
    ("model", "output", "run"),
    # batch_size is here the larger batch, an option of its own
    ("model", *_PRUNED, *_SAVED, "revision", "resume", "batch_size", "activations", "memory"),
    (SpeedOptions,),
)
