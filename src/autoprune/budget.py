"""How much memory a run needs, counted in tensors, and the plan that fits a budget."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autoprune.core.problem import Method, Scope
from autoprune.core.statistics import InputGram
from autoprune.errors import RecipeError
from autoprune.model.anatomy import Anatomy, Block

PROGRAM = 480 * 2**20  # resident memory of the interpreter with its libraries, before any weight
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
FLOAT = 4  # bytes: statistics and solving are in float32


@dataclass(frozen=True)
class Shape:
    """What memory depends on: counts of weights, widths, and how many bytes one number takes."""

    width: int  # of the hidden states
    widest: int  # largest input or output of a layer
    outside: int  # parameters outside the blocks that calibration needs (the head is not among them)
    block: int  # parameters of the largest block
    sub_block: int  # weights of the largest sub-block
    group: int  # weights of the largest set of layers that may share an input
    stored: int  # bytes of one stored weight
    running: int  # bytes of one number in the forward passes
    copies: int  # 1 if blocks run on the weights as they are stored, 2 if they are cast or moved first

    @classmethod
    def of(cls, anatomy: Anatomy, *, outside: int, stored: int, running: int, moved: bool) -> Shape:
        """Reads the counts off a model, whose weights may be on the meta device."""
        largest = max(anatomy.blocks, key=lambda block: block.parameters)
        shapes = [layer.shape for block in anatomy.blocks for layer in block.layers]
        width = getattr(anatomy.model.config.get_text_config(), "hidden_size", 0) or largest.layers[0].shape[1]  # type: ignore[union-attr, operator]
        return cls(
            width,
            max(max(shape) for shape in shapes),
            outside,
            largest.parameters,
            max(_sub_blocks(largest).values()),
            max(_groups(largest).values()),
            stored,
            running,
            2 if moved or running != stored else 1,
        )


def shape_of(model: Any, anatomy: Anatomy, stored: torch.dtype, *, moved: bool) -> Shape:
    """The shape of a model whose weights may be on the meta device; the head counts only where it is the embedding."""
    head = model.get_output_embeddings()
    tied = head is not None and any(p is q for p in head.parameters() for q in model.get_input_embeddings().parameters())
    outside = sum(p.numel() for p in model.parameters()) - sum(block.parameters for block in anatomy.blocks)
    outside -= 0 if head is None or tied else sum(p.numel() for p in head.parameters())
    return Shape.of(anatomy, outside=outside, stored=stored.itemsize, running=model.dtype.itemsize, moved=moved)


@dataclass(frozen=True)
class Layout:
    """How a run uses memory: windows per forward pass, and where hidden states live."""

    batch: int
    activations: str  # device, cpu or disk
    at_once: bool = False  # whether the first pass sends all windows through a block together (--true_sequential)


@dataclass(frozen=True)
class Need:
    """Bytes of each part at the peak."""

    program: int
    outside: int
    weights: int
    hidden: int
    work: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(dataclasses.astuple(self))


def need_of(shape: Shape, methods: Sequence[Method], layout: Layout, *, samples: int, tokens: int) -> Need:
    """Peak resident memory of a streamed run: one block at a time, hidden states of ``samples`` windows of ``tokens``."""
    rebuilds = any(method.scope is Scope.SUB_BLOCK for method in methods)
    looking = sum(method.statistic is not None for method in methods)
    stream = samples * tokens * shape.width * shape.running
    streams = looking + (2 if rebuilds else 0)  # LLM-Barber keeps the outputs of up to two sub-blocks beside its own stream
    weights = shape.block * (shape.stored * 2 + (shape.copies - 1) * shape.running)
    together = samples if layout.at_once else layout.batch
    work = max(_solving(shape, methods), _rebuilding(shape, layout, tokens) if rebuilds else 0, _forward(shape, together, tokens))
    return Need(PROGRAM, shape.outside * shape.stored, weights, 0 if layout.activations == "disk" else stream * streams, work)


def choose_layout(
    shape: Shape, methods: Sequence[Method], *, samples: int, tokens: int, wanted: Layout, fixed_place: bool, budget: int | None
) -> tuple[Layout, Need]:
    """The wanted layout if it fits the budget, else the nearest one that does: smaller batches, then hidden states on disk.

    Raises: RecipeError saying what the most frugal layout needs, if nothing fits.
    """
    places = [wanted.activations] if fixed_place or wanted.activations == "disk" else [wanted.activations, "disk"]
    batches = [wanted.batch >> shift for shift in range(wanted.batch.bit_length())]
    need = need_of(shape, methods, wanted, samples=samples, tokens=tokens)
    if budget is None:
        return wanted, need
    for place in places:
        for batch in batches:
            layout = dataclasses.replace(wanted, batch=batch, activations=place)
            need = need_of(shape, methods, layout, samples=samples, tokens=tokens)
            if need.total <= budget:
                return layout, need
    raise RecipeError(
        f"--memory {human(budget)} is not enough: even one window at a time with hidden states on {places[-1]} needs about {human(need.total)} "
        f"({human(need.program)} program, {human(need.outside)} embeddings, {human(need.weights)} one block, {human(need.work)} work); "
        "give more memory, shorter windows (--seqlen), or a method that needs less"
    )


def parse_memory(text: str) -> int:
    """Bytes of a size such as ``8GiB``, ``500 MB`` or ``2e9``. Raises: RecipeError if it is none."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    unit = match[2].upper() if match else ""
    try:
        if not match or (unit not in UNITS and unit + "B" not in UNITS):
            raise ValueError(text)
        return int(float(match[1]) * UNITS.get(unit, UNITS.get(unit + "B", 1)))
    except ValueError as error:
        raise RecipeError(f"--memory {text!r} is no size; write for example 8GiB or 500MB") from error


def human(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _forward(shape: Shape, batch: int, tokens: int) -> int:
    """Activations inside a block: hidden states and residual, a few of the widest tensors."""
    return batch * tokens * (6 * shape.width + 3 * shape.widest) * shape.running


def _solving(shape: Shape, methods: Sequence[Method]) -> int:
    """Weights of a group in float32 with scores and patterns; for SparseGPT the Gram and its factors too."""
    gram = any(method.statistic is InputGram for method in methods)
    return shape.group * FLOAT * (5 if gram else 4) + (4 * shape.widest**2 * FLOAT if gram else 0)


def _rebuilding(shape: Shape, layout: Layout, tokens: int) -> int:
    """Dense, pruned, energy, gradient and score of a sub-block in float32; the rest of the block in float32; its activations."""
    cast = shape.block * FLOAT if shape.running != FLOAT else 0
    activations = layout.batch * tokens * (12 * shape.width + 8 * shape.widest) * FLOAT
    return 5 * shape.sub_block * FLOAT + cast + activations


def _sub_blocks(block: Block) -> dict[str, int]:
    sums: dict[str, int] = {"": 0}
    for layer in block.layers:
        name = layer.name.split(".")[0] if "." in layer.name else ""
        sums[name] = sums.get(name, 0) + layer.count
    return sums


def _groups(block: Block) -> dict[tuple[str, int], int]:
    """Layers of one parent and input width together: at least as large as the true input groups."""
    sums: dict[tuple[str, int], int] = {}
    for layer in block.layers:
        key = (layer.name.rpartition(".")[0], layer.shape[1])
        sums[key] = sums.get(key, 0) + layer.count
    return sums
