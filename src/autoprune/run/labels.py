"""What a run and its result are called: in tables, and in the names of files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.errors import OutputError, RecipeError
from autoprune.recipe.recipe import Recipe
from autoprune.results.variants import DENSE
from autoprune.storage.manifest import Manifest


def names_apart(words: Sequence[str]) -> list[str]:
    """Names for models given by these words: the last part of a path where that tells them apart, else the word,
    with a number where one stands twice.
    """
    short = [Path(word).name if word != "demo" and Path(word).exists() else word for word in words]
    names = [brief if short.count(brief) == 1 else word for brief, word in zip(short, words, strict=True)]
    return [name if names.count(name) == 1 else f"{name} {i + 1}" for i, name in enumerate(names)]


def method_label(recipe: Recipe) -> str:
    """The run's steps, each with the options that make it differ from others: ``wanda+barber (output1 0.01)``.

    Told are options that are always shown, and those that are not as usual; numbers and switches of these by name.
    """
    words = ["given"] if recipe.chosen.pruned_model else []
    for name in recipe.steps:
        own, *others = recipe.with_others(name)
        shown, named = list[str](), list[str]()
        for field, value in [
            (f, getattr(group, f.name)) for group in (own, *others) for f in dataclasses.fields(group)
        ]:
            spelled = field.name.replace("_", " ")
            word = f"{value:g}" if isinstance(value, float) else str(value)
            if field.metadata.get("shown") and hasattr(own, field.name):
                shown.append(word)
            elif value != field.default:
                named.append(spelled if value is True else f"{spelled} {word}")
        told = ", ".join([*([" ".join(shown)] if shown else []), *named])
        words.append(f"{name} ({told})" if told else name)
    return "+".join(words)


def target_label(target: Target | None) -> str:
    """The target as tables show it: ``50 %``, ``2:4``."""
    if isinstance(target, SemiStructured):
        return str(target)
    return f"{100 * target.ratio:g} %" if isinstance(target, Unstructured) else "given"


def labels_of(directory: Path) -> tuple[str, str]:
    """Method and target of a checkpoint, if its manifest says that autoprune pruned it; any other is called dense.

    What is no longer as it was written, as after a fine-tuning in place or an edit of config.json, is not called so.
    """
    try:
        found = Manifest.read(directory)
        recipe = found.recipe
        unchanged = found.describes_inputs and found.describes_weights
    except (OutputError, KeyError, TypeError, AttributeError, RecipeError):
        return DENSE
    if not unchanged:
        return f"{method_label(recipe)}, then changed", "changed"
    return method_label(recipe), target_label(recipe.target)


def report_stem(recipe: Recipe, labels: tuple[str, str]) -> str:
    """The part of the names of a run's tables that tells it from others, of the labels of the row that they show:
    ``dense``, ``wanda+barber-output1-0.01_50pct``; ``eval_wanda_2of4`` of what an earlier run has pruned.
    """
    if labels == DENSE:
        return DENSE[0]
    method = re.sub(r"[ (,]+", "-", labels[0]).replace(")", "")
    target = labels[1].replace(" %", "pct").replace(":", "of")
    only_measured = recipe.target is None and not recipe.chosen.pruned_model
    return f"{'eval_' if only_measured else ''}{method}_{target}"
