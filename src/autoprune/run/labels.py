"""What a run and its result are called: in tables, and in the names of files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.errors import OutputError, RecipeError
from autoprune.recipe.recipe import Recipe
from autoprune.storage.manifest import Manifest

DENSE = ("dense", "dense")


def method_label(recipe: Recipe) -> str:
    """The run's steps in one word, such as ``wanda+barber``."""
    given = ("given",) if recipe.chosen.pruned_model else ()
    return "+".join([*given, *recipe.steps])


def described(recipe: Recipe) -> str:
    """The same with the options that make it differ from others: ``wanda+barber-output1-0.01``."""
    words = ["given"] if recipe.chosen.pruned_model else []
    for name in recipe.steps:
        options = recipe.options_of(name)
        told = [
            getattr(options, field.name)
            for field in dataclasses.fields(options)
            if field.metadata.get("shown") or getattr(options, field.name) != field.default
        ]
        words.append("-".join([name, *(f"{value:g}" if isinstance(value, float) else str(value) for value in told)]))
    return "+".join(words)


def target_label(target: Target | None) -> str:
    """The target as tables show it: ``50 %``, ``2:4``."""
    if isinstance(target, SemiStructured):
        return str(target)
    return f"{100 * target.ratio:g} %" if isinstance(target, Unstructured) else "given"


def labels_of(directory: Path) -> tuple[str, str]:
    """Method and target of a checkpoint, if its manifest says that autoprune pruned it; any other is called dense."""
    try:
        recipe = Manifest.read(directory).recipe
    except (OutputError, KeyError, TypeError, AttributeError, RecipeError):
        return DENSE
    return method_label(recipe), target_label(recipe.target)


def report_stem(recipe: Recipe, labels: tuple[str, str]) -> str:
    """The part of the names of a run's tables that tells it from others; ``labels`` as of the row that they show."""
    if recipe.target is None and not recipe.chosen.pruned_model:
        return "dense" if labels == DENSE else f"eval_{labels[0]}"
    target = target_label(recipe.target).replace(" %", "pct").replace(":", "of")
    return f"{described(recipe)}_{target}"
