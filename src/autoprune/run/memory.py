"""How much memory a run needs, counted in tensors, and the plan that fits a budget."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from autoprune.core.statistics import CrossGram, InputGram
from autoprune.errors import RecipeError
from autoprune.model.anatomy import Anatomy, BlockAnatomy
from autoprune.model.layers import Expert
from autoprune.model.pruning import kinds_of, split_passes
from autoprune.run.sizes import human
from autoprune.steps.base import Step
from autoprune.steps.price import FLOAT, Shape

PROGRAM = 512 * 2**20  # the interpreter with its libraries (about 480 MiB), and holes in memory


def shape_of(model: Any, anatomy: Anatomy, stored: torch.dtype, *, moved: bool) -> Shape:
    """The counts of a model, whose weights may be on the meta device; the head counts where it is not the embedding.

    ``moved``: blocks run on another device than the one on which they are read.
    """
    module, text = model.get_output_embeddings(), model.config.get_text_config()
    tied = module is not None and any(
        p is q for p in module.parameters() for q in model.get_input_embeddings().parameters()
    )
    head = 0 if module is None or tied else sum(p.numel() for p in module.parameters())
    inside = sum(block.parameters for block in anatomy.blocks)
    largest = max(anatomy.blocks, key=lambda block: block.parameters)
    layers = [layer for block in anatomy.blocks for layer in block.layers]
    running = model.dtype.itemsize
    return Shape(
        width=(getattr(text, "hidden_size", 0) or largest.layers[0].shape[1]) * _streams(text),
        widest=max(max(layer.shape) for layer in layers),
        outside=sum(p.numel() for p in model.parameters()) - inside - head,
        head=head,
        vocabulary=text.vocab_size,
        block=largest.parameters,
        sub_block=max(_sub_blocks(largest).values()),
        sub_blocks=len(_sub_blocks(largest)),
        layer=max(layer.count for layer in layers),
        gram=max(layer.shape[1] ** 2 for layer in layers),
        grams=max(_grams(block) for block in anatomy.blocks),
        stored=stored.itemsize,
        running=running,
        copies=3 if anatomy.has_experts else 2 if moved or running != stored.itemsize else 1,
        heads=_full_scores(text),
        parameters=inside,
        squares=sum(sum({layer.shape[1] ** 2 for layer in block.layers}) for block in anatomy.blocks),
        sweeps=sum(layer.count * layer.shape[1] for layer in layers),
        blocks=len(anatomy.blocks),
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


def need_of(shape: Shape, steps: Sequence[Step], layout: Layout, load: Load) -> Need:
    """Peak resident memory of a streamed run, in whichever of its phases needs more."""
    phases = [_opening(shape)]
    if load.evaluated:
        phases.append(_evaluation(shape, layout, load))
    if steps:
        phases.append(_pruning(shape, steps, layout, load))
        phases.append(_whole(shape, steps, layout, load))
    return max(phases, key=lambda need: need.total)


def check_whole(shape: Shape, steps: Sequence[Step], device: torch.device, instead: str, states: int = 0) -> None:
    """Raises: RecipeError if a step trains the whole model and memory is short; ``instead`` leaves it out.

    ``states``: bytes of hidden states of all samples that are held beside it.
    """
    for step in steps:
        whole = step.price(shape).whole
        whole += states if whole else 0
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if whole > free:
            raise RecipeError(
                f"the step {step.name} trains the whole model at once, which takes about {human(whole)}, and"
                f" {human(free)} of memory are free; leave it out ({instead} does), or give a"
                f" smaller --batch_size{' or --activations disk' if states else ''}"
            )


def choose_layout(
    shape: Shape, steps: Sequence[Step], load: Load, *, wanted: Layout, fixed_place: bool, budget: int, whole: int = 0
) -> tuple[Layout, Need]:
    """The wanted layout if it fits the budget, else the nearest one that does: smaller batches, then hidden states on
    disk. ``whole``: bytes of a model that is in memory all the time.

    Raises: RecipeError saying what the most frugal layout needs, if nothing fits.
    """
    places = [wanted.activations] if fixed_place or wanted.activations == "disk" else [wanted.activations, "disk"]
    for place in places:
        for batch in (wanted.batch >> shift for shift in range(wanted.batch.bit_length())):
            layout = dataclasses.replace(wanted, batch=batch, activations=place)
            need = need_of(shape, steps, layout, load)
            if need.total + whole <= budget:
                return layout, need
    how = (
        "all windows at a time (--true_sequential)"
        if layout.at_once and need.phase == "pruning"
        else "one window at a time"
    )
    raise RecipeError(
        f"--memory {human(budget)} is not enough: even {how} with hidden states on {places[-1]} {need.phase} needs"
        f" about {human(need.total + whole)} ({f'{human(whole)} the whole model, ' if whole else ''}"
        f"{human(need.program)} program, {human(need.outside)} embeddings,"
        f" {human(need.weights)} weights, {human(need.hidden)} hidden states, {human(need.work)} work); give more"
        " memory, shorter windows (--seqlen), or a method that needs less"
    )


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


def _pruning(shape: Shape, steps: Sequence[Step], layout: Layout, load: Load) -> Need:
    """One block at a time. Counted are the tensors that are there at once when most of them are;
    benchmarks/memory.py compares with real runs.
    """
    shape = dataclasses.replace(shape, batch=layout.batch, samples=load.samples, tokens=load.tokens)
    prices = [step.price(shape) for step in steps]
    looking = sum(any(step.needs.samples for step in group) for group in split_passes(steps))
    looking = max(looking, 1 if load.samples else 0)  # --layer_errors looks too
    looking += 2 * any(step.needs.dense_stream for step in steps) + sum(price.streams for price in prices)
    numbers = load.samples * load.tokens * shape.width
    hidden = numbers * shape.running * (looking + max(price.outputs for price in prices))
    # As stored, as they run, pruned, the pattern, and new ones, which wait to be written.
    kept = shape.stored * (load.models + any(price.new_weights for price in prices))
    weights = shape.block * (kept + (shape.copies - 1) * shape.running + shape.running + 1)
    weights += max(price.stays for price in prices)
    forward = forward_bytes(shape, layout.batch, load.tokens)
    phases = [shape.block * (shape.copies + shape.stored)]  # the pattern and the result, laid out as they are stored
    for number, group in enumerate(split_passes(steps)):
        if number == 0 and layout.at_once:  # input groups one by one, each solved with half of the activations there
            one, all_windows = dataclasses.replace(shape, grams=shape.gram), _at_once(shape, load)
            solving = _statistics(one, group) + max(step.price(shape).work for step in group)
            phases.append(max(all_windows, all_windows // 2 + solving))
            continue
        phases.append(forward + _statistics(shape, group))
        phases += [step.price(shape).work + _statistics(shape, group[i:]) for i, step in enumerate(group)]
    work = max(phases)
    outside = shape.outside * shape.running * load.models
    return Need("pruning", PROGRAM, outside, weights, 0 if layout.activations == "disk" else hidden, work)


def _statistics(shape: Shape, steps: Sequence[Step]) -> int:
    """What is observed for steps of one pass, as long as one of them is to come; norms weigh nothing."""
    return FLOAT * shape.grams * len({InputGram, CrossGram}.intersection(kinds_of(steps)))


def _whole(shape: Shape, steps: Sequence[Step], layout: Layout, load: Load) -> Need:
    """Work on the whole model, after the walk; nothing where no step does any."""
    shape = dataclasses.replace(shape, batch=layout.batch, samples=load.samples, tokens=load.tokens)
    work = max(step.price(shape).whole for step in steps)
    outside = (shape.outside + shape.head) * shape.running if work else 0
    return Need("training the whole model", PROGRAM, outside, 0, 0, work)


def _streams(config: Any) -> int:
    """Residual streams between blocks (hyper-connections); one in most models."""
    found = (getattr(config, name, None) for name in ("hc_mult", "hc_count"))
    return next((value for value in found if isinstance(value, int)), 1)


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


def _full_scores(config: Any) -> int:
    """Attention heads of a model that lays out every head's scores; others compute them piece by piece."""
    full = getattr(config, "_attn_implementation", "eager") == "eager"
    return int(getattr(config, "num_attention_heads", None) or getattr(config, "n_head", None) or 0) if full else 0


def _sub_blocks(block: BlockAnatomy) -> dict[str, int]:
    sums: dict[str, int] = {}
    for layer in block.layers:
        name = layer.name.split(".")[0] if "." in layer.name else ""
        sums[name] = sums.get(name, 0) + layer.count
    return sums


def _grams(block: BlockAnatomy) -> int:
    """Numbers in the Grams of a block: every expert has its own; of other layers with one parent and width some may
    share one.

    Which ones is only known when the block runs. As attention's output shares none with its inputs, two are counted.
    """
    own = sum(layer.shape[1] ** 2 for layer in block.layers if isinstance(layer, Expert))
    shared = Counter(
        (layer.name.rpartition(".")[0], layer.shape[1]) for layer in block.layers if not isinstance(layer, Expert)
    )
    return own + sum(min(count, 2) * features**2 for (_, features), count in shared.items())
