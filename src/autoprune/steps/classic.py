"""The classic flags, ``--prune_method`` and ``--prune_barber``, as a list of steps. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoprune.errors import RecipeError, unknown
from autoprune.steps.options import option

# What --effort stands for: flat options, chosen by the few figures that there are (docs/quality.md).
EFFORTS: dict[str, dict[str, Any]] = {
    "low": {"steps": ("wanda", "refit")},
    "medium": {"steps": ("wanda", "reconstruct"), "epochs": 2, "learning_rate": 0.002, "batch_size": 1},
    "high": {
        "steps": ("wanda", "reconstruct", "distill"),
        "epochs": 2,
        "learning_rate": 0.002,
        "reconstruct_loss": "block",
        "distill_epochs": 1,
        "distill_rate": 0.0002,
        "batch_size": 1,
    },
}


@dataclass(frozen=True)
class StepOptions:
    """By which steps the model is pruned, in their order."""

    prune_method: str = option(
        "wanda", "first pass: magnitude, wanda or sparsegpt (or one from an installed plugin)", metavar="METHOD"
    )
    prune_barber: bool = option(False, "rebuild the mask with LLM-Barber after the first pass")
    steps: tuple[str, ...] = option(
        (),
        "comma list of steps in their order, instead of --prune_method and --prune_barber, such as wanda,refit,barber",
        metavar="STEP[,STEP]",
        comma=True,
    )
    effort: str | None = option(
        None,
        "no steps named: a recipe of low, moderate or high cost; medium with --sparsity",
        choices=tuple(EFFORTS),
    )
    pruned_model: str | None = option(
        None, "rebuild this already pruned copy of --model instead of pruning first", metavar="DIR"
    )


def step_names(options: StepOptions) -> tuple[str, ...]:
    """The names of the steps to take; a given pruned model takes the first pass's place.

    Raises: RecipeError if both ways of naming steps are used together.
    """
    if options.steps:
        if options.prune_barber:
            raise RecipeError("--steps names all steps; leave out --prune_barber and write barber into the list")
        return options.steps
    first = () if options.pruned_model else (options.prune_method,)
    return (*first, "barber") if options.prune_barber else first


def with_effort(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat options with those that an effort stands for beneath what is given.

    Raises: RecipeError if steps are named too, or the effort is unknown.
    """
    named = [name for name in ("steps", "prune_method", "prune_barber", "pruned_model") if values.get(name)]
    effort = values.get("effort") or ("medium" if values.get("sparsity") and not named else None)
    if effort is None:
        return dict(values)
    if named:
        raise RecipeError(f"--effort chooses the steps, and so does --{named[0]}; leave out one of the two")
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise RecipeError(f"--effort {unknown(str(effort), EFFORTS)}")
    return {**EFFORTS[effort], **values, "effort": effort}
