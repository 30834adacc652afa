"""How a comparison fits a budget: windows at a time, and where hidden states live."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from autoprune.data.windows import Windows
from autoprune.errors import RecipeError
from autoprune.evaluation.compare import LOGITS
from autoprune.events import Emit, Notice
from autoprune.recipe.recipe import Recipe
from autoprune.run.memory import FLOAT, PROGRAM, Layout, Shape, forward_bytes, shape_of
from autoprune.run.open import Subject, held_bytes
from autoprune.run.sizes import human, parse_memory
from autoprune.storage.store import CheckpointStore


def fitted(
    wanted: Layout, recipe: Recipe, subjects: Sequence[Subject], texts: Sequence[Windows], emit: Emit
) -> Layout:
    """The wanted layout if it fits ``--memory``, else the nearest that does: fewer windows at a time, then disk.

    Raises: RecipeError saying what the most frugal one needs.
    """
    stores = [s.store for s in subjects if isinstance(s.store, CheckpointStore)]
    if recipe.run.memory is None or not stores or not texts:
        return wanted
    shapes = [shape_of(s.model, s.anatomy, s.skeleton.storage_dtype, moved=s.device.type != "cpu") for s in stores]
    held = sum(held_bytes(s.checkpoint, recipe) for s in subjects if s.checkpoint and s.store.resident)
    longest = max((text.ids.shape for text in texts), key=lambda shape: shape[0] * shape[1])
    budget = parse_memory(recipe.run.memory)
    fixed = recipe.run.activations != "cpu"
    for place in [wanted.activations] if fixed else [wanted.activations, "disk"]:
        for batch in (wanted.batch >> shift for shift in range(wanted.batch.bit_length())):
            layout = dataclasses.replace(wanted, batch=batch, activations=place)
            need = comparison_bytes(shapes, layout, *longest, held=held)
            if need <= budget:
                emit(Notice(f"plan for {human(budget)}: {batch} windows per pass, about {human(need)} at the peak"))
                return layout
    raise RecipeError(
        f"--memory {human(budget)} is not enough: even one window at a time with hidden states on {place} comparing"
        f" {len(subjects)} models needs about {human(need)}; give more memory, shorter windows (--seqlen), or fewer"
        " models at a time"
    )


def comparison_bytes(shapes: Sequence[Shape], layout: Layout, windows: int, tokens: int, *, held: int = 0) -> int:
    """Bytes at the peak, with embeddings and heads of all models open; ``held``: models in memory as a whole.

    Hidden states of half of each window wait behind a model's last block; of the model that is running all do.
    """
    outside = 0 if held else sum((shape.outside + shape.head) * shape.running for shape in shapes)
    block = 0 if held else max(shape.block * (shape.stored + (shape.copies - 1) * shape.running) for shape in shapes)
    states = windows * tokens * max(shape.width * shape.running for shape in shapes)
    hidden = 0 if held or layout.activations == "disk" else states * (len(shapes) + 2) // 2
    logits = sum(2 * LOGITS * shape.running for shape in shapes) + 8 * LOGITS // 16 * FLOAT
    forward = max(forward_bytes(shape, layout.batch, tokens) for shape in shapes)
    return PROGRAM + held + outside + block + hidden + max(logits, forward)
