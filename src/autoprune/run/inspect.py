"""What a model looks like to autoprune, and what pruning it will cost: `autoprune inspect`."""

from __future__ import annotations

import contextlib
import dataclasses
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from autoprune.errors import OutputError
from autoprune.machine.allocator import restored
from autoprune.machine.devices import choose_device
from autoprune.model.anatomy import Anatomy, examine
from autoprune.model.experts import eager_experts
from autoprune.model.observe import InputObserver
from autoprune.model.replay import replay_check
from autoprune.model.stream import Place
from autoprune.model.walk import Store, prepare_inputs, walk
from autoprune.recipe.checks import model_word
from autoprune.recipe.commands import INSPECT
from autoprune.recipe.keywords import InspectOptions, Unpack
from autoprune.recipe.recipe import Recipe, recipe_from_flat
from autoprune.results.shown import screen
from autoprune.results.table import Table, from_rows, to_html
from autoprune.run.estimate import arithmetic, clock, flops_per_second
from autoprune.run.layout import batch_size
from autoprune.run.memory import Layout, Load, need_of, shape_of
from autoprune.run.open import context_of, open_model
from autoprune.run.plan import choose_seqlen
from autoprune.run.shortage import told_with
from autoprune.steps.table import PRICED, make_steps
from autoprune.storage.locate import locate
from autoprune.storage.manifest import Manifest
from autoprune.storage.skeleton import hollow_model
from autoprune.storage.store import beside
from autoprune.storage.weight_files import has_weights

PROBE = 16  # tokens run through the blocks to see which layers share an input, and whether the blocks replay


@dataclass(frozen=True)
class LayerLine:
    """One kind of layer and the blocks that have it."""

    name: str
    out: int
    features: int
    shared_with: str
    blocks: str


@dataclass(frozen=True)
class Estimate:
    """An estimate, not a promise: memory by counting tensors, time by a short measured product on this machine."""

    method: str
    bytes: float  # resident at the peak, hidden states in memory
    bytes_on_disk: float  # the same with hidden states in a file (--activations disk)
    time: str


@dataclass(frozen=True, repr=False)
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
    left_alone: tuple[str, ...]  # what lies beside the language model, such as an image encoder
    replay: str
    costs: tuple[Estimate, ...]
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        lines = [f"{line.name}: {line.out} x {line.features} in blocks {line.blocks}" for line in self.layers]
        head = f"Inspection of {self.model}: {self.blocks} blocks ({self.block_list}), {self.parameters:,} parameters"
        return screen(f"{head}, {self.dtype}", [f"coverage: {self.coverage:.2%}", *self.notes, *lines])

    def _repr_html_(self) -> str:
        head = html.escape(repr(self).splitlines()[0])
        layers = [(line.name, f"{line.out} x {line.features}", line.shared_with, line.blocks) for line in self.layers]
        tables = (
            Table(from_rows(("layer", "shape", "shares its input with", "blocks"), layers, words=4)),
            Table(from_rows(("method", "peak memory", "rough time here"), self._cost_rows, words=1)),
        )
        return "".join([f"<p>{head}</p>", *map(to_html, tables)])

    @property
    def _cost_rows(self) -> list[tuple[str, str, str]]:
        return [(cost.method, f"{cost.bytes / 2**30:.2f} GiB", cost.time) for cost in self.costs]


def inspect(model: str | Path, **options: Unpack[InspectOptions]) -> Inspection:
    """Describes a model on disk or on the hub; a directory with config.json alone is enough for structure and cost.

    Raises: ModelError if it can't be read; RecipeError for options that mean nothing here.
    """
    INSPECT.check(options)
    return inspect_recipe(recipe_from_flat({"model": model_word(model), "sparsity_ratio": 0.5, **options}))


@restored()
def inspect_recipe(recipe: Recipe) -> Inspection:
    """Describes the recipe's model; where its weights are at hand, the blocks run on a few tokens."""
    remedy = "a block of the model and what lies outside the blocks have to fit; --dtype bfloat16 halves float32"
    with told_with(lambda: remedy):
        return _inspected(recipe)


def _inspected(recipe: Recipe) -> Inspection:
    directory = locate(recipe.model.model, recipe.model.cache_dir, recipe.model.revision)
    if directory.is_file() or has_weights(directory):
        store = open_model(recipe, resident=False).store
        dtype = store.storage_dtype or torch.float32
        model: Any = store.model
        anatomy, left_alone, groups, replay = store.anatomy, store.left_alone, _shared_inputs(store), _replay(store)
    else:
        dtype = _stated_dtype(directory, recipe)
        model = hollow_model(directory, dtype, trust_remote_code=recipe.model.trust_remote_code)
        anatomy, groups, replay = examine(model), {}, "not tried: there are no weights here, only config.json"
        left_alone = beside(anatomy)
    seqlen = choose_seqlen(recipe, context_of(model.config.get_text_config()))
    missed = sorted(
        {f"{anatomy.name}.*.{name} ({count:,})" for block in anatomy.blocks for name, count in block.unreached}
    )
    return Inspection(
        recipe.model.model,
        anatomy.name,
        len(anatomy.blocks),
        sum(p.numel() for p in model.parameters()),
        str(dtype).removeprefix("torch."),
        _layer_lines(anatomy, groups),
        anatomy.coverage,
        tuple(missed[:12]) + ((f"… {len(missed) - 12} more",) if len(missed) > 12 else ()),
        left_alone,
        replay,
        _costs(model, anatomy, dtype, recipe, seqlen, recipe.steps),
        (
            *_made_from(directory),
            (
                f"estimates for {recipe.calibration.nsamples} windows of {seqlen} tokens, streamed from disk"
                " (--save_model)"
            ),
        ),
    )


def _made_from(directory: Path) -> Iterator[str]:
    """What a smaller model was made from, by its own record."""
    with contextlib.suppress(OutputError):  # no record, or none that can be read
        found = Manifest.read(directory)
        if found.shrink is not None:
            gone = ", ".join(map(str, found.shrink["dropped"])) or "none"
            narrower = "".join(f" {c['entry']} was {c['before']};" for c in found.shrink["narrower"])
            yield (
                f"made smaller from {found.raw['model']['name']}: blocks gone: {gone};{narrower}"
                f" {found.shrink['parameters_before']:,} parameters before"
            )


def _stated_dtype(directory: Any, recipe: Recipe) -> torch.dtype:
    from autoprune.storage.skeleton import read_config

    stated = getattr(read_config(directory, recipe.model.trust_remote_code), "dtype", None)
    return stated if isinstance(stated, torch.dtype) else torch.float16


def _probe_tokens(store: Store) -> int:
    config: Any = store.anatomy.model.config
    return min(PROBE, context_of(config.get_text_config()) or PROBE)


def _replay(store: Store) -> str:
    vocabulary = store.anatomy.model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    tokens = _probe_tokens(store)
    found = replay_check(store, torch.arange(2 * tokens).remainder(vocabulary).view(2, tokens))
    if found.exact:
        return "exact: block by block gives the model's own numbers, bit for bit"
    return (
        f"differs from {found.block} on, by up to {found.difference:.3g}; methods that look at data will refuse this"
        " model"
    )


@torch.no_grad()
def _shared_inputs(store: Store) -> dict[int, list[tuple[str, ...]]]:
    """By block: the names of layers that receive one and the same tensor."""
    vocabulary = store.anatomy.model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    ids = torch.arange(_probe_tokens(store)).remainder(vocabulary).unsqueeze(0)
    inputs, stream = prepare_inputs(store, ids, 1, Place("cpu", store.device))
    groups: dict[int, list[tuple[str, ...]]] = {}
    with eager_experts(store.anatomy.model):
        for block in walk(store):
            with InputObserver(block.layers, (), ids.shape[1]) as observer:
                stream[0] = inputs.calls.of(0, block.index)(block.module, stream[0])
            groups[block.index] = [tuple(layer.name for layer in group.layers) for group in observer.groups]
    return groups


def _layer_lines(anatomy: Anatomy, groups: dict[int, list[tuple[str, ...]]]) -> tuple[LayerLine, ...]:
    lines: dict[tuple[str, int, int, str], list[int]] = {}
    for block in anatomy.blocks:
        for layer in block.layers:
            group: tuple[str, ...] = next((g for g in groups.get(block.index, []) if layer.name in g), ())
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


def _costs(
    model: Any, anatomy: Anatomy, dtype: torch.dtype, recipe: Recipe, seqlen: int, chosen: tuple[str, ...]
) -> tuple[Estimate, ...]:
    samples, speed = recipe.calibration.nsamples, flops_per_second(choose_device(recipe.model.device))
    counts = shape_of(model, anatomy, dtype, moved=False)
    estimates = []
    for names in dict.fromkeys((*PRICED, chosen)):
        steps, batch = make_steps(names, recipe.step_options), batch_size(recipe, seqlen, names)
        shape = dataclasses.replace(counts, samples=samples, tokens=seqlen, batch=batch)
        load = Load(samples, seqlen) if any(step.needs.samples for step in steps) else Load()
        here, on_disk = (need_of(shape, steps, Layout(batch, place), load).total for place in ("cpu", "disk"))
        estimates.append(Estimate("+".join(names), here, on_disk, clock(arithmetic(shape, steps) / speed)))
    return tuple(estimates)
