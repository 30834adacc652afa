"""How much memory a run needs, counted in tensors, and the plan that fits a budget."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autoprune.core.problem import Method, Scope
from autoprune.core.statistics import InputGram
from autoprune.errors import RecipeError
from autoprune.model.anatomy import Anatomy, Block
from autoprune.model.layers import Expert
from autoprune.model.precision import COMPUTE_DTYPES, compute_word

PROGRAM = 512 * 2**20  # the interpreter with its libraries (about 480 MiB), and holes in memory
UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
FLOAT = 4  # bytes: statistics and solving are in float32


@dataclass(frozen=True)
class Shape:
    """What memory depends on: counts of weights, widths, and how many bytes one number takes."""

    width: int  # of the hidden states
    widest: int  # largest input or output of a layer
    outside: int  # parameters outside the blocks that calibration needs
    head: int  # parameters that only evaluation needs besides: the head's, where they are not the embedding's
    vocabulary: int
    block: int  # parameters of the largest block
    sub_block: int  # weights of the largest sub-block
    sub_blocks: int  # how many a block has
    layer: int  # weights of the largest layer
    gram: int  # numbers in the largest layer's Gram
    grams: int  # numbers in the Grams of all input groups of a block
    stored: int  # bytes of one stored weight
    running: int  # bytes of one number in the forward passes
    # 1 if blocks run on the weights as they are stored, 2 if they are cast or moved first, 3 if (experts) fused and
    # then overwritten
    copies: int
    heads: int  # of attention, where its scores are laid out in full; else 0

    @classmethod
    def of(cls, anatomy: Anatomy, *, outside: int, head: int, stored: int, running: int, moved: bool) -> Shape:
        """Reads the counts off a model, whose weights may be on the meta device."""
        largest = max(anatomy.blocks, key=lambda block: block.parameters)
        layers = [layer for block in anatomy.blocks for layer in block.layers]
        width = getattr(anatomy.model.config.get_text_config(), "hidden_size", 0) or largest.layers[0].shape[1]  # type: ignore[union-attr, operator]
        return cls(
            width=width,
            widest=max(max(layer.shape) for layer in layers),
            outside=outside,
            head=head,
            vocabulary=anatomy.model.config.get_text_config().vocab_size,  # type: ignore[union-attr, operator]
            block=largest.parameters,
            sub_block=max(_sub_blocks(largest).values()),
            sub_blocks=len(_sub_blocks(largest)),
            layer=max(layer.count for layer in layers),
            gram=max(layer.shape[1] ** 2 for layer in layers),
            grams=max(_grams(block) for block in anatomy.blocks),
            stored=stored,
            running=running,
            copies=3 if anatomy.has_experts else 2 if moved or running != stored else 1,
            heads=_full_scores(anatomy),
        )


def shape_of(model: Any, anatomy: Anatomy, stored: torch.dtype, *, moved: bool) -> Shape:
    """The shape of a model whose weights may be on the meta device; the head counts only where it is the embedding."""
    module = model.get_output_embeddings()
    tied = module is not None and any(
        p is q for p in module.parameters() for q in model.get_input_embeddings().parameters()
    )
    head = 0 if module is None or tied else sum(p.numel() for p in module.parameters())
    outside = sum(p.numel() for p in model.parameters()) - sum(block.parameters for block in anatomy.blocks) - head
    return Shape.of(
        anatomy, outside=outside, head=head, stored=stored.itemsize, running=model.dtype.itemsize, moved=moved
    )


@dataclass(frozen=True)
class Layout:
    """How a run uses memory: windows per forward pass, and where hidden states live."""

    batch: int
    activations: str  # device, cpu or disk
    at_once: bool = False  # whether the first pass sends all windows through a block together (--true_sequential)


@dataclass(frozen=True)
class Load:
    """What a run sends through the model: calibration windows while it prunes, the windows of the longest text while
    it evaluates.
    """

    samples: int = 0
    tokens: int = 1
    evaluated: int = 0  # windows
    evaluated_tokens: int = 1
    models: int = 1  # that are open while it prunes: 2 with --pruned_model
    held: int = 0  # bytes of a model that is in memory as a whole while it is evaluated; 0 if it is run block by block


@dataclass(frozen=True)
class Need:
    """Bytes of each part at the peak of a phase."""

    phase: str
    program: int
    outside: int
    weights: int
    hidden: int
    work: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.program + self.outside + self.weights + self.hidden + self.work


def need_of(shape: Shape, methods: Sequence[Method], layout: Layout, load: Load) -> Need:
    """Peak resident memory of a streamed run, in whichever of its phases needs more."""
    phases = [_opening(shape)]
    if load.evaluated:
        phases.append(_evaluation(shape, layout, load))
    if methods:
        phases.append(_pruning(shape, methods, layout, load))
    return max(phases, key=lambda need: need.total)


def choose_layout(
    shape: Shape, methods: Sequence[Method], load: Load, *, wanted: Layout, fixed_place: bool, budget: int
) -> tuple[Layout, Need]:
    """The wanted layout if it fits the budget, else the nearest one that does: smaller batches, then hidden states on
    disk.

    Raises: RecipeError saying what the most frugal layout needs, if nothing fits.
    """
    places = [wanted.activations] if fixed_place or wanted.activations == "disk" else [wanted.activations, "disk"]
    for place in places:
        for batch in (wanted.batch >> shift for shift in range(wanted.batch.bit_length())):
            layout = dataclasses.replace(wanted, batch=batch, activations=place)
            need = need_of(shape, methods, layout, load)
            if need.total <= budget:
                return layout, need
    how = (
        "all windows at a time (--true_sequential)"
        if layout.at_once and need.phase == "pruning"
        else "one window at a time"
    )
    raise RecipeError(
        f"--memory {human(budget)} is not enough: even {how} with hidden states on {places[-1]} {need.phase} needs"
        f" about {human(need.total)} ({human(need.program)} program, {human(need.outside)} embeddings,"
        f" {human(need.weights)} weights, {human(need.hidden)} hidden states, {human(need.work)} work); give more"
        " memory, shorter windows (--seqlen), or a method that needs less"
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


def _opening(shape: Shape) -> Need:
    """Embeddings and head are read, one after the other: what is read lies in memory twice, as the file and as a
    tensor.
    """
    return Need(
        "opening the model",
        PROGRAM,
        shape.outside * shape.running,
        0,
        0,
        2 * max(shape.outside, shape.head) * shape.stored,
    )


def _pruning(shape: Shape, methods: Sequence[Method], layout: Layout, load: Load) -> Need:
    """One block at a time. Counted are the tensors that are there at once when most of them are; benchmarks/memory.py
    compares with real runs.
    """
    rebuilds = any(method.scope is Scope.SUB_BLOCK for method in methods)
    gram = any(method.statistic is InputGram for method in methods)
    looking = max(
        sum(method.statistic is not None for method in methods), 1 if load.samples else 0
    )  # --layer_errors looks too
    numbers = load.samples * load.tokens * shape.width
    # LLM-Barber keeps the outputs of all sub-blocks beside the hidden states of its own.
    hidden = numbers * shape.running * (looking + (shape.sub_blocks if rebuilds else 0))
    # As stored, as they run, pruned, the pattern, and SparseGPT's new ones, which wait to be written.
    weights = shape.block * (
        shape.stored * (load.models + gram) + (shape.copies - 1) * shape.running + shape.running + 1
    )
    work = max(
        _at_once(shape, load) if layout.at_once else forward_bytes(shape, layout.batch, load.tokens),
        _solving(shape, gram),
        shape.block * (shape.copies + shape.stored),  # the pattern and the result, laid out as they are stored
        *(
            _rebuilding(shape, method, layout.batch, load.tokens)
            for method in methods
            if method.scope is Scope.SUB_BLOCK
        ),
    )
    outside = shape.outside * shape.running * load.models
    return Need("pruning", PROGRAM, outside, weights, 0 if layout.activations == "disk" else hidden, work)


def _evaluation(shape: Shape, layout: Layout, load: Load) -> Need:
    """The whole model or one block at a time, and the logits of one forward pass: those of one window in float32
    besides, twice.
    """
    weights = load.held or shape.block * (shape.stored + (shape.copies - 1) * shape.running)
    outside = 0 if load.held else (shape.outside + shape.head) * shape.running
    hidden = (
        0
        if load.held or layout.activations == "disk"
        else load.evaluated * load.evaluated_tokens * shape.width * shape.running
    )
    logits = load.evaluated_tokens * shape.vocabulary * (layout.batch * shape.running + 2 * FLOAT)
    return Need(
        "evaluation",
        PROGRAM,
        outside,
        weights,
        hidden,
        max(logits, forward_bytes(shape, layout.batch, load.evaluated_tokens)),
    )


def forward_bytes(shape: Shape, windows: int, tokens: int) -> int:
    """Activations inside a block (hidden states and residual, a few of the widest tensors, attention's scores), and a
    statistic's view of one.
    """
    inside = (6 * shape.width + 3 * shape.widest) * shape.running + 2 * shape.widest * FLOAT
    return windows * tokens * (inside + shape.heads * tokens * (shape.running + FLOAT))


def _at_once(shape: Shape, load: Load) -> int:
    """All windows in one pass: a quarter more for holes in memory that is kept, and who may look at whom, for models
    that have a table of it.
    """
    return forward_bytes(shape, load.samples, load.tokens) * 5 // 4 + load.samples * load.tokens**2


def _solving(shape: Shape, gram: bool) -> int:
    """The largest layer in float32 with scores and what choosing needs.

    For SparseGPT all Grams, and beside them either what factorising the largest one needs, or its factor and two
    layers that are swept together.
    """
    if not gram:
        return shape.layer * FLOAT * 5
    return FLOAT * (shape.grams + max(3 * shape.gram, shape.gram + 6 * shape.layer))


def _rebuilding(shape: Shape, method: Method, windows: int, tokens: int) -> int:
    """A sub-block's energies, and beside them the more of two: its gradients, or the exchange.

    Gradients take its weights in the precision that they are computed in: dense and pruned, or dense with one layer's
    gradient, twice, and the activations. The exchange takes copies of all scores that are compared with each other.
    """
    computing = COMPUTE_DTYPES[compute_word(method)].itemsize
    cast = shape.sub_block * computing if shape.running != computing or shape.copies > 2 else 0
    activations = (
        windows * tokens * ((12 * shape.width + 6 * shape.widest) * computing + 3 * shape.heads * tokens * FLOAT)
    )
    gradients = (
        cast + max(cast + activations // 2, 2 * shape.layer * FLOAT + activations) + (cast if shape.copies > 2 else 0)
    )
    compared = shape.sub_block if getattr(method, "prune_granularity", "") == "block" else shape.layer
    return shape.sub_block * FLOAT + max(gradients, compared * FLOAT * 6)


def _full_scores(anatomy: Anatomy) -> int:
    """Attention heads of a model that lays out every head's scores; others compute them piece by piece."""
    config = anatomy.model.config.get_text_config()  # type: ignore[union-attr, operator]
    full = getattr(config, "_attn_implementation", "eager") == "eager"
    return int(getattr(config, "num_attention_heads", None) or getattr(config, "n_head", None) or 0) if full else 0


def _sub_blocks(block: Block) -> dict[str, int]:
    sums: dict[str, int] = {}
    for layer in block.layers:
        name = layer.name.split(".")[0] if "." in layer.name else ""
        sums[name] = sums.get(name, 0) + layer.count
    return sums


def _grams(block: Block) -> int:
    """Numbers in the Grams of a block: every expert has its own; of other layers with one parent and width some may
    share one.

    Which ones is only known when the block runs. As attention's output shares none with its inputs, two are counted.
    """
    own = sum(layer.shape[1] ** 2 for layer in block.layers if isinstance(layer, Expert))
    shared = Counter(
        (layer.name.rpartition(".")[0], layer.shape[1]) for layer in block.layers if not isinstance(layer, Expert)
    )
    return own + sum(min(count, 2) * features**2 for (_, features), count in shared.items())
