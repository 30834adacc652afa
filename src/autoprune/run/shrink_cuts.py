"""Which channels of an MLP and which experts go, block by block, and what is left of the block's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autoprune.core.shrinking import channel_scores, compensated, lowest
from autoprune.core.statistics import InputGram
from autoprune.errors import ModelError, RecipeError
from autoprune.events import Emit, Notice
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.block import Block
from autoprune.model.calls import PROBE_TOKENS
from autoprune.model.expert_scores import experts_of, scoring
from autoprune.model.experts import eager_experts
from autoprune.model.layers import Expert, Layer
from autoprune.model.stream import Place
from autoprune.model.walk import prepare_inputs, walk
from autoprune.recipe.options import ShrinkOptions
from autoprune.run.numbers import count_of
from autoprune.storage.cuts import EXPERTS, WIDTH, Cut, find_cut
from autoprune.storage.smaller import Descriptions
from autoprune.storage.store import CheckpointStore


@dataclass(frozen=True)
class Cuts:
    """What gets narrower in every block; None: nothing."""

    width: Cut | None = None
    experts: Cut | None = None
    by_load: bool = False

    @property
    def entries(self) -> dict[str, int]:
        """The entries of config.json that change."""
        return {cut.entry: cut.new for cut in (self.width, self.experts) if cut is not None}

    def touches(self, block: int) -> bool:
        """Whether anything of a block goes."""
        return any(cut is not None and cut.blocks[block] for cut in (self.width, self.experts))


def plan_cuts(store: CheckpointStore, place: Descriptions, how: ShrinkOptions, emit: Emit) -> Cuts:
    """Finds what would be cut.

    Raises: RecipeError for counts that can't be; ModelError for models that have no such parts.
    """
    width = experts = None
    blocks = store.anatomy.blocks
    if how.mlp:

        def narrow(cut: Cut) -> None:
            for block in blocks:
                down_of(block, cut)

        width = find_cut(store, place, WIDTH, lambda old: _width(how, old), "width of the MLPs", narrow)
        if count := sum(not parts for parts in width.blocks):
            emit(
                Notice(f"--mlp: {count} of {len(blocks)} blocks have no MLP that {width.entry} sets, and stay as wide")
            )
    if how.experts:
        if not store.anatomy.has_experts:
            raise RecipeError("--experts: this model has no experts that could go; give --blocks or --mlp")

        def in_one_part(cut: Cut) -> None:
            for block in (block for block in blocks if cut.blocks[block.index]):
                _experts_of(block)

        numbers = "number of experts"
        experts = find_cut(store, place, EXPERTS, lambda old: _experts(store, how, old), numbers, in_one_part)
    return Cuts(width, experts, how.experts_by == "load")


@torch.no_grad()
def check_experts(store: CheckpointStore, cuts: Cuts, ids: Int[Tensor, "samples tokens"]) -> None:
    """Runs the first block with experts on a few tokens.

    Raises: ModelError if it can't be seen what each of them adds.
    """
    cut = cuts.experts
    first = next((index for index, parts in enumerate(cut.blocks) if parts), None) if cut is not None else None
    if cut is None or first is None:
        return
    inputs, stream = prepare_inputs(store, ids[:1, :PROBE_TOKENS], 1, Place("device", store.device))
    with eager_experts(store.model):
        for block in walk(store, start=first, stop=first + 1):
            with scoring(block.name, _experts_of(block), cut.old):
                inputs.calls.of(0, first)(block.module, stream[0])


def _experts_of(block: BlockAnatomy) -> nn.Module:
    """Raises: ModelError for a block with several parts that hold experts, or with experts of which none is known."""
    experts = experts_of(block.module)
    if experts is None:
        raise ModelError(
            f"{block.name} does not hold its experts in one part, so autoprune can't see what each one adds; --experts"
            " can't be used on this model"
        )
    return experts


def _width(how: ShrinkOptions, old: int) -> int:
    assert how.mlp is not None
    new = round(old * (1 - how.mlp) / how.multiple) * how.multiple
    if not 0 < new < old:
        raise RecipeError(
            f"--mlp {how.mlp:g} of a width of {old} leaves no smaller multiple of {how.multiple}"
            f" (it would be {new}); give another share, or a smaller --multiple"
        )
    return new


def _experts(store: CheckpointStore, how: ShrinkOptions, old: int) -> int:
    config = store.model.config.get_text_config()
    if any((getattr(config, name, None) or 1) > 1 for name in ("n_group", "num_expert_groups")):
        raise RecipeError(
            "--experts: this model's router chooses groups of experts first (n_group), which must stay whole"
        )
    names = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk")
    stated = [getattr(config, name, None) for name in names]
    inside = [vars(module).get("top_k") for module in store.model.modules()]
    top = max((value for value in (*stated, *inside) if isinstance(value, int)), default=1)
    return old - count_of("experts", how.experts, old, least=top, why=f", for every token goes to {top}")


def down_of(block: BlockAnatomy, cut: Cut) -> Layer | None:
    """The layer that the narrow channels enter; None in a block that has none.

    Raises: ModelError if there are several, or if they are experts.
    """
    parts = cut.blocks[block.index]
    if fused := [layer for layer in block.layers if isinstance(layer, Expert) and layer.parameter_name in parts]:
        raise ModelError(
            f"{block.full_name(fused[0])} is an expert: the width of experts stays as it is; --experts leaves out"
            " whole ones"
        )
    found = [
        layer
        for layer in block.layers
        if (part := parts.get(layer.parameter_name)) and part.axis == (0 if isinstance(layer.module, Conv1D) else 1)
    ]
    if parts and len(found) != 1:
        raise ModelError(
            f"{block.name}: {len(found)} layers take what {cut.entry} makes narrower, and autoprune knows how to"
            " choose channels for one; --mlp can't be used on this model"
        )
    return found[0] if found else None


@torch.no_grad()
def narrowed(block: Block, down: Layer, new: int) -> tuple[Tensor, Tensor]:
    """The channels that stay, and the layer's new weight ``[out, in]`` with zeros for the others, rounded as it is
    stored; the block holds it from now on.
    """
    block.begin_pass(block.inputs, block.stream, (InputGram,))
    (group,) = block.observe(InputGram)
    statistic = group.statistics[InputGram]
    assert isinstance(statistic, InputGram)
    scores = channel_scores(down.matrix, statistic.gram)
    kept = scores.sort(descending=True, stable=True).indices[:new].sort().values
    weight = compensated(down.matrix, kept, statistic.gram).to(block.stored_as[down.parameter_name])
    down.assign(weight)
    return kept.cpu(), weight


@torch.no_grad()
def experts_left(block: Block, cuts: Cuts, note: dict[str, Any]) -> Tensor:
    """The experts of a block that stay, in their old order."""
    assert cuts.experts is not None and block.stream is not None
    cut = cuts.experts
    with scoring(block.name, _experts_of(block.anatomy), cut.old) as scores:
        for i in block.batches("experts"):
            block.run(i, block.stream[i])
    gone = lowest(scores.load if cuts.by_load else scores.reap, cut.old - cut.new)
    note |= {"experts_gone": gone, "scores": scores.reap, "load": scores.tokens}
    return torch.tensor([expert for expert in range(cut.old) if expert not in gone])
