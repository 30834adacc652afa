"""What a run and its result are called: in tables, and in the names of files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.errors import RecipeError
from autoprune.recipe.recipe import Recipe, recipe_from_flat
from autoprune.storage.placing import MANIFEST

DENSE = ("dense", "dense")


def method_label(recipe: Recipe) -> str:
    """The run's steps in one word, with the settings of those that have any: ``wanda+barber (block 0.1)``."""
    first = "given" if recipe.rebuild.pruned_model else recipe.pruning.prune_method
    if not recipe.rebuild.prune_barber:
        return first
    chosen = recipe.barber
    words = [f"{chosen.prune_granularity} {chosen.threshold:g}"]
    words += [f"metric {chosen.prune_metric}"] if chosen.prune_metric != "WD" else []
    words += ["update kept"] if chosen.retain_reconstruction else []
    return f"{first}+barber ({', '.join(words)})"


def target_label(target: Target | None) -> str:
    """The target as tables show it: ``50 %``, ``2:4``."""
    if isinstance(target, SemiStructured):
        return str(target)
    return f"{100 * target.ratio:g} %" if isinstance(target, Unstructured) else "given"


def labels_of(directory: Path) -> tuple[str, str]:
    """Method and target of a checkpoint, if its manifest says that autoprune pruned it; any other is called dense."""
    try:
        recorded = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["recipe"]
        recipe = recipe_from_flat(
            {name: value for group in recorded.values() for name, value in group.items() if value is not None}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecipeError):
        return DENSE
    return method_label(recipe), target_label(recipe.target)


def report_stem(labels: tuple[str, str], *, pruned_now: bool) -> str:
    """The part of the names of a run's tables that tells it from others: ``wanda_0.5``,
    ``wanda+barber_2-4_output1_0.1``, ``dense``; ``eval_wanda_0.5`` of a model that an earlier run has pruned.
    """
    if labels == DENSE:
        return DENSE[0]
    method, _, settings = labels[0].partition(" (")
    target = f"{float(labels[1][:-2]) / 100:g}" if labels[1].endswith(" %") else labels[1].replace(":", "-")
    words = re.findall(r"[\w.]+", settings)
    return "_".join([*([] if pruned_now else ["eval"]), method, target, *words])
