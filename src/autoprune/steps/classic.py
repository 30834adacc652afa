"""The classic flags, ``--prune_method`` and ``--prune_barber``, as a list of steps. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.errors import RecipeError
from autoprune.steps.options import option


@dataclass(frozen=True)
class StepOptions:
    """By which steps the model is pruned, in their order."""

    prune_method: str = option(
        "wanda", "first pass: magnitude, wanda or sparsegpt (or one from an installed plugin)", metavar="METHOD"
    )
    prune_barber: bool = option(False, "rebuild the keep pattern with LLM-Barber after the first pass")
    steps: tuple[str, ...] = option(
        (),
        "comma list of steps in their order, instead of --prune_method and --prune_barber, such as wanda,refit,barber",
        metavar="STEP[,STEP]",
        comma=True,
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
