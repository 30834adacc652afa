"""Memory that runs out: an error that says which options need less of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from autoprune.errors import ShortageError
from autoprune.recipe.recipe import Recipe

SIGNS = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory", "std::bad_alloc")


@contextmanager
def shortage_told(recipe: Recipe) -> Iterator[None]:
    """Turns what Python, torch and the system say when memory runs out into one error with a remedy.

    Raises: ShortageError.
    """
    with told_with(lambda: ", ".join(remedies(recipe))):
        yield


@contextmanager
def told_with(remedy: Callable[[], str]) -> Iterator[None]:
    """The same with another remedy. Raises: ShortageError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(s in str(error) for s in SIGNS)):
            raise
        device = "the device's memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ShortageError(f"{device} ran out ({first[:160]}); {remedy()}") from error


def remedies(recipe: Recipe) -> list[str]:
    """What would need less, of what was asked for; the most effective first."""
    run, found = recipe.run, list[str]()
    if run.batch_size != 1:
        now = f" (now {run.batch_size})" if run.batch_size else ""
        found.append(f"--batch_size 1{now} sends one window at a time through a block")
    if run.activations != "disk":
        found.append(f"--activations disk keeps hidden states out of memory (now {run.activations})")
    if run.memory is None:
        found.append("--memory SIZE chooses both so that they fit, or says beforehand that nothing does")
    found.append(f"fewer or shorter windows: --nsamples (now {recipe.calibration.nsamples}), --seqlen")
    pruned = recipe.target is not None or recipe.chosen.pruned_model is not None
    if pruned and not recipe.output.save_model:
        found.append("--save_model reads and writes the model block by block instead of holding it")
    return found
