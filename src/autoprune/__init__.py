"""AutoPrune: one-shot pruning of Hugging Face causal language models.

``autoprune.prune(model, …)`` prunes, ``autoprune.evaluate(model, …)`` measures perplexity, ``autoprune.run(recipe)``
does what a recipe says,
``autoprune.compare(dense, pruned)`` says how far predictions moved, ``autoprune.benchmark(grid)`` compares ways of
pruning, ``autoprune.inspect(model)`` describes, ``autoprune.rotate(model, out)`` writes the same function in a basis
that is easier to prune, ``autoprune.shrink(model, out, …)`` a smaller dense model, ``autoprune.speed(models)``
measures how quick and large models are; names are loaded when they are first used, so that importing the package is
quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from autoprune.errors import AutoPruneError, DataError, ModelError, NumericsError, OutputError, RecipeError
from autoprune.recipe.recipe import Recipe

if TYPE_CHECKING:
    from autoprune.bench.bench import benchmark
    from autoprune.recipe.keywords import CompareOptions, EvaluateOptions, InspectOptions, PruneOptions, RotateOptions
    from autoprune.run.api import evaluate, prune, run
    from autoprune.run.compare import compare
    from autoprune.run.inspect import inspect
    from autoprune.run.result import PruneResult
    from autoprune.run.rotate import rotate
    from autoprune.run.shrink import ShrinkResult, shrink
    from autoprune.run.speed import speed

__all__ = [
    "AutoPruneError",
    "CompareOptions",
    "DataError",
    "EvaluateOptions",
    "InspectOptions",
    "ModelError",
    "NumericsError",
    "OutputError",
    "PruneOptions",
    "PruneResult",
    "Recipe",
    "RecipeError",
    "RotateOptions",
    "ShrinkResult",
    "benchmark",
    "compare",
    "evaluate",
    "inspect",
    "prune",
    "rotate",
    "run",
    "shrink",
    "speed",
]
__version__ = "0.1.0"

# OpenMP reads it when torch is loaded: threads that wait for others sleep instead of spinning, which on a machine
# where something else is at work takes the very time that the others wait for (docs/performance.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_LAZY = {
    "prune": "autoprune.run.api",
    "evaluate": "autoprune.run.api",
    "PruneResult": "autoprune.run.result",
    "compare": "autoprune.run.compare",
    "inspect": "autoprune.run.inspect",
    "benchmark": "autoprune.bench.bench",
    "rotate": "autoprune.run.rotate",
    "shrink": "autoprune.run.shrink",
    "ShrinkResult": "autoprune.run.shrink",
    "speed": "autoprune.run.speed",
}
_LAZY |= {name: "autoprune.recipe.keywords" for name in __all__ if name.endswith("Options")}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "run":  # the room of that name, which can be called
        return importlib.import_module("autoprune.run")
    raise AttributeError(f"module 'autoprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "errors", "events", *(name for name in globals() if name.startswith("__"))})
