"""What a run and its result are called: in tables, and in the names of files."""

from __future__ import annotations

from pathlib import Path

from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.errors import OutputError, RecipeError
from autoprune.recipe.recipe import Recipe, recipe_from_flat
from autoprune.storage.manifest import Manifest

DENSE = ("dense", "dense")


def method_label(recipe: Recipe) -> str:
    """The run's passes in one word, such as ``wanda+barber``."""
    first = "given" if recipe.rebuild.pruned_model else recipe.pruning.prune_method
    return f"{first}+barber" if recipe.rebuild.prune_barber else first


def target_label(target: Target | None) -> str:
    """The target as tables show it: ``50 %``, ``2:4``."""
    if isinstance(target, SemiStructured):
        return str(target)
    return f"{100 * target.ratio:g} %" if isinstance(target, Unstructured) else "given"


def labels_of(directory: Path) -> tuple[str, str]:
    """Method and target of a checkpoint, if its manifest says that autoprune pruned it; any other is called dense."""
    try:
        recipe = recipe_from_flat(Manifest.read(directory).recipe)
    except (OutputError, KeyError, TypeError, AttributeError, RecipeError):
        return DENSE
    return method_label(recipe), target_label(recipe.target)


def report_stem(recipe: Recipe, labels: tuple[str, str]) -> str:
    """The part of the names of a run's tables that tells it from others; ``labels`` as of the row that they show."""
    if recipe.target is not None or recipe.rebuild.pruned_model:
        return f"{recipe.pruning.prune_method}_{recipe.barber.threshold:g}"
    return f"dense_{recipe.barber.threshold:g}" if labels == DENSE else f"eval_{labels[0]}"
