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
    wanted: Layout, recipe: Recipe, models: Sequence[tuple[Subject, bool]], texts: Sequence[Windows], emit: Emit
) -> Layout:
    """The wanted layout if it fits ``--memory``, else the nearest that does: fewer windows at a time, then disk.

    ``models``, each with whether it is in memory as a whole.

    Raises: RecipeError saying what the most frugal one needs.
    """
    counted = [
        (_shape(subject), held_bytes(subject.checkpoint, recipe) if held else 0)
        for subject, held in models
        if subject.checkpoint
    ]
    if recipe.run.memory is None or not counted or not texts:
        return wanted
    longest = max((text.ids.shape for text in texts), key=lambda shape: shape[0] * shape[1])
    budget = parse_memory(recipe.run.memory)
    fixed = recipe.run.activations != "cpu"
    for place in [wanted.activations] if fixed else [wanted.activations, "disk"]:
        for batch in (wanted.batch >> shift for shift in range(wanted.batch.bit_length())):
            layout = dataclasses.replace(wanted, batch=batch, activations=place)
            need = comparison_bytes(counted, layout, *longest)
            if need <= budget:
                emit(Notice(f"plan for {human(budget)}: {batch} windows per pass, about {human(need)} at the peak"))
                return layout
    raise RecipeError(
        f"--memory {human(budget)} is not enough: even one window at a time with hidden states on {place} comparing"
        f" {len(models)} models needs about {human(need)}; give more memory, shorter windows (--seqlen), or fewer"
        " models at a time"
    )


def comparison_bytes(models: Sequence[tuple[Shape, int]], layout: Layout, windows: int, tokens: int) -> int:
    """Bytes at the peak, with embeddings and heads of all models open; each model with the bytes that it holds in
    memory as a whole, 0 if it is run block by block.

    Hidden states of half of each window wait behind such a model's last block; of the one that is running all do.
    """
    shapes = [shape for shape, _ in models]
    streamed = [shape for shape, held in models if not held]
    outside = sum((shape.outside + shape.head) * shape.running for shape in streamed)
    block = max((s.block * (s.stored + (s.copies - 1) * s.running) for s in streamed), default=0)
    states = windows * tokens * max((shape.width * shape.running for shape in streamed), default=0)
    waiting = (len(streamed) + 2) // 2 if streamed else 0
    hidden = 0 if layout.activations == "disk" else states * waiting
    logits = sum(2 * LOGITS * shape.running for shape in shapes) + 8 * LOGITS // 16 * FLOAT
    forward = max(forward_bytes(shape, layout.batch, tokens) for shape in shapes)
    return PROGRAM + sum(held for _, held in models) + outside + block + hidden + max(logits, forward)


def _shape(subject: Subject) -> Shape:
    assert isinstance(subject.store, CheckpointStore)
    skeleton, moved = subject.store.skeleton, subject.store.device.type != "cpu"
    return shape_of(subject.store.model, subject.store.anatomy, skeleton.storage_dtype, moved=moved)
