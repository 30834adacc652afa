"""What a model looks like to autoprune, and what pruning it will cost: `autoprune inspect`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from autoprune.model.anatomy import Anatomy, Block
from autoprune.model.observe import InputObserver
from autoprune.model.pipeline import prepare_inputs
from autoprune.model.stream import Place
from autoprune.planning import Subject, choose_seqlen, open_model
from autoprune.recipe import Recipe, recipe_from_flat

PROBE = 16  # tokens run through the blocks to see which layers share an input
PROGRAM = 0.45 * 2**30  # resident memory of the interpreter with its libraries, before any weight


@dataclass(frozen=True)
class LayerLine:
    """One kind of layer and the blocks that have it."""

    name: str
    out: int
    features: int
    shared_with: str
    blocks: str


@dataclass(frozen=True)
class Cost:
    """An estimate, not a promise: memory by counting tensors, time by a short measured product on this machine."""

    method: str
    bytes: float
    time: str


@dataclass(frozen=True)
class Inspection:
    """What ``autoprune inspect`` prints."""

    model: str
    block_list: str
    blocks: int
    parameters: int
    dtype: str
    layers: tuple[LayerLine, ...]
    coverage: float
    unreached: tuple[str, ...]
    costs: tuple[Cost, ...]
    notes: tuple[str, ...] = field(default=())


def inspect(model: str, **options: Any) -> Inspection:
    """Describes a model on disk or on the hub. Raises: ModelError if it can't be read."""
    return inspect_recipe(recipe_from_flat({"model": str(model), "sparsity_ratio": 0.5, **options}))


def inspect_recipe(recipe: Recipe) -> Inspection:
    """Describes the recipe's model; the blocks run once on a few tokens to see what they share."""
    subject = open_model(recipe, resident=False)
    anatomy = subject.store.anatomy
    seqlen = choose_seqlen(recipe, subject.context)
    groups = _shared_inputs(subject)
    missed = sorted({f"{anatomy.name}.*.{name} ({count:,})" for block in anatomy.blocks for name, count in block.unreached})
    tokens = recipe.calibration.nsamples * seqlen
    return Inspection(
        subject.name,
        anatomy.name,
        len(anatomy.blocks),
        sum(p.numel() for p in subject.store.model.parameters()),
        str(subject.store.storage_dtype).removeprefix("torch."),
        _layer_lines(anatomy, groups),
        anatomy.coverage,
        tuple(missed[:12]) + ((f"… {len(missed) - 12} more",) if len(missed) > 12 else ()),
        _costs(subject, recipe, tokens, seqlen),
        (f"estimates for {recipe.calibration.nsamples} windows of {seqlen} tokens, streamed from disk (--save_model), on {subject.store.device}",),
    )


@torch.no_grad()
def _shared_inputs(subject: Subject) -> dict[int, list[tuple[str, ...]]]:
    """By block: the names of layers that receive one and the same tensor."""
    store = subject.store
    ids = torch.arange(PROBE).remainder(subject.config.vocab_size).unsqueeze(0)
    inputs, stream = prepare_inputs(store, ids, 1, Place("cpu", store.device))
    groups: dict[int, list[tuple[str, ...]]] = {}
    for block in store.anatomy.blocks:
        store.load(block.index)
        observer = InputObserver(block.layers, None, PROBE)
        with observer:
            stream[0] = inputs.calls.of(0, block.index)(block.module, stream[0])
        store.release(block.index)
        groups[block.index] = [tuple(layer.name for layer in group.layers) for group in observer.groups]
    return groups


def _layer_lines(anatomy: Anatomy, groups: dict[int, list[tuple[str, ...]]]) -> tuple[LayerLine, ...]:
    lines: dict[tuple[str, int, int, str], list[int]] = {}
    for block in anatomy.blocks:
        for layer in block.layers:
            group: tuple[str, ...] = next((g for g in groups[block.index] if layer.name in g), ())
            others = ", ".join(name.rsplit(".", 1)[-1] for name in group if name != layer.name)
            lines.setdefault((layer.name, *layer.shape, others), []).append(block.index)
    return tuple(LayerLine(*key, _ranges(blocks)) for key, blocks in lines.items())


def _ranges(numbers: Sequence[int]) -> str:
    """``0-4, 7`` for 0 1 2 3 4 7."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _costs(subject: Subject, recipe: Recipe, tokens: int, seqlen: int) -> tuple[Cost, ...]:
    anatomy = subject.store.anatomy
    largest = max(anatomy.blocks, key=lambda block: block.parameters)
    stored = subject.store.storage_dtype
    size = stored.itemsize if stored else 4
    width = int(getattr(subject.config, "hidden_size", 0) or largest.layers[0].shape[1])
    outside = sum(p.numel() for p in subject.store.model.parameters()) - sum(block.parameters for block in anatomy.blocks)
    stream = tokens * width * size
    base = PROGRAM + outside * size + 3 * largest.parameters * size
    widest = max(layer.shape[1] for layer in largest.layers)
    speed = _flops_per_second(subject.store.device)
    forward = 2.0 * sum(block.parameters for block in anatomy.blocks) * tokens
    gram = 2.0 * tokens * sum(_grams(block) for block in anatomy.blocks)
    sweep = sum(2.0 * layer.count * layer.shape[1] for block in anatomy.blocks for layer in block.layers)
    barber = base + 3 * stream + 5 * 4 * largest.parameters
    return (
        Cost("magnitude", base, _clock(0.0)),
        Cost("wanda", base + stream, _clock(2 * forward / speed)),
        Cost("sparsegpt", base + stream + 3 * 4 * widest**2, _clock((2 * forward + gram + sweep) / speed)),
        Cost("wanda+barber", barber + stream, _clock(7 * forward / speed)),
    )


def _grams(block: Block) -> int:
    """Squares of the input widths, once per distinct width: close to once per input group."""
    return sum({layer.shape[1] ** 2 for layer in block.layers})


def _flops_per_second(device: torch.device) -> float:
    a = torch.rand(512, 512, device=device)
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        total = float((a @ a).sum())
        best = max(best, 2 * 512**3 / (time.perf_counter() - start)) if total else best
    return best


def _clock(seconds: float) -> str:
    if seconds < 60:
        return "under a minute"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
