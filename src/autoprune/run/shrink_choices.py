"""What `autoprune shrink` was asked for, judged before anything is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.data.handed import recipe_given
from autoprune.errors import RecipeError
from autoprune.recipe.checks import check_bounds, made, model_word
from autoprune.recipe.commands import SHRINK
from autoprune.recipe.options import ShrinkOptions
from autoprune.recipe.recipe import Recipe
from autoprune.steps.options import HEALINGS
from autoprune.steps.table import entry, healing_options

# What says how something goes, and what has to go for it.
_ABOUT = {"by": "blocks", "multiple": "mlp", "experts_by": "experts"}

# Of `distill` where only widths go: least squares leaves little to gain, and twice this rate gained SmolLM2 nothing.
NARROW_RATE = 1e-4


def choices(model: str | Path, out: Path, options: dict[str, Any]) -> tuple[Recipe, ShrinkOptions]:
    """Raises: RecipeError for options that mean nothing here, and for values that can't be used."""
    SHRINK.check(options)
    ours = {f.name for f in dataclasses.fields(ShrinkOptions)}
    how = made(ShrinkOptions, options)
    check_bounds(how)
    if not (how.blocks or how.mlp or how.experts):
        raise RecipeError("nothing is to go: give --blocks, --mlp or --experts, such as --blocks 0.2")
    _check_together(how, options)
    others: dict[str, Any] = {"batch_size": 1} if HEALINGS[how.heal] else {}
    if any(entry(step).whole for step in HEALINGS[how.heal]) and how.mlp and not how.blocks:
        others["distill_rate"] = NARROW_RATE
    others |= {name: value for name, value in options.items() if name not in ours}
    return recipe_given({"model": model_word(model), "sparsity_ratio": 0, "save_model": str(out), **others}), how


def _check_together(how: ShrinkOptions, options: Mapping[str, Any]) -> None:
    """Raises: RecipeError for options that contradict each other, or change nothing beside the others."""
    given = {name for name, value in options.items() if value is not None and value is not False}
    for name, about in _ABOUT.items():
        if name in given and not getattr(how, about):
            raise RecipeError(f"--{name} changes nothing without --{about}; give --{about}, or leave out --{name}")
    for step, group in healing_options().items():
        if step in HEALINGS[how.heal]:
            continue
        for field in dataclasses.fields(group):
            if field.name in given:
                healings = " or ".join(word for word, steps in HEALINGS.items() if step in steps)
                raise RecipeError(
                    f"--{field.name} changes nothing with --heal {how.heal}; give --heal {healings}, or leave out"
                    f" --{field.name}"
                )
    if how.heal == "rescale" and (how.by == "divergence" or not how.blocks):
        raise RecipeError("--heal rescale goes by sizes that --by influence and angular see where --blocks go")
    if how.by == "divergence" and options.get("memory"):
        raise RecipeError("--by divergence holds the hidden states of many models; leave out --memory, or it")
