"""The pruning methods: one paper, one short file; this table is the only place that lists them."""

from __future__ import annotations

import dataclasses
from importlib.metadata import entry_points

from autoprune.core.problem import Method
from autoprune.errors import RecipeError
from autoprune.recipe.recipe import Recipe
from autoprune.steps.barber import Barber
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda

FIRST_PASSES: dict[str, type] = {"magnitude": Magnitude, "wanda": Wanda, "sparsegpt": SparseGPT}
ENTRY_POINT_GROUP = "autoprune.steps"


def first_pass(name: str, recipe: Recipe) -> Method:
    """The method called ``name``, its hyper-parameters taken from the recipe's group of the same name.

    Packages can add methods under the entry-point group ``autoprune.steps``.
    Raises: RecipeError if no method has that name.
    """
    plugins = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name in FIRST_PASSES:
        options = getattr(recipe, name, None)
        return FIRST_PASSES[name](**dataclasses.asdict(options)) if options else FIRST_PASSES[name]()
    if name in plugins:
        return plugins[name].load()()
    raise RecipeError(f"--prune_method {name!r} is unknown; choose from {', '.join([*FIRST_PASSES, *plugins])}")


def passes(recipe: Recipe) -> tuple[Method, ...]:
    """The passes of a recipe in their order: a first pass unless a pruned model is given, then LLM-Barber if asked
    for.
    """
    chosen: list[Method] = []
    if recipe.rebuild.pruned_model is None:
        chosen.append(first_pass(recipe.pruning.prune_method, recipe))
    if recipe.rebuild.prune_barber:
        chosen.append(Barber(**dataclasses.asdict(recipe.barber)))
    return tuple(chosen)
