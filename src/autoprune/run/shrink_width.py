"""Whether narrower MLPs compute what the wide ones do without some channels: tried before anything long is done."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.calls import PROBE_TOKENS, BlockCall
from autoprune.model.experts import eager_experts
from autoprune.model.stream import Place
from autoprune.model.walk import prepare_inputs, walk
from autoprune.run.shrink_cuts import Cuts, down_of
from autoprune.storage.cuts import Cut
from autoprune.storage.smaller import Descriptions, open_smaller
from autoprune.storage.store import CheckpointStore

ROUNDING = {torch.bfloat16: 5e-2, torch.float16: 2e-2}  # between two orders of adding up


def with_layout(store: CheckpointStore, place: Descriptions, cuts: Cuts, ids: Int[Tensor, "samples tokens"]) -> Cuts:
    """``cuts`` with how the channels of the MLPs lie in the tensors that have two entries for each.

    Raises: ModelError naming the first block that gives something else, however they lie.
    """
    if cuts.width is None:
        return cuts
    small = open_smaller(store, place, range(len(store.anatomy.blocks)), {cuts.width.entry: cuts.width.new})
    two = any(part.times == 2 for parts in cuts.width.blocks for part in parts.values())
    odd = []
    for cut in (replace(cuts.width, paired=paired) for paired in (False, True)[: 1 + two]):
        odd.append(_first_odd(store, small, cut, ids[:1, :PROBE_TOKENS]))
        if odd[-1] is None:
            return replace(cuts, width=cut)
    raise ModelError(
        f"{odd[0]}: a narrower MLP does not compute what the wide one computes without those channels; they are laid"
        " out in a way that autoprune does not know, so --mlp can't be used on this model"
    )


@torch.no_grad()
def _first_odd(store: CheckpointStore, small: CheckpointStore, cut: Cut, few: Int[Tensor, "1 tokens"]) -> str | None:
    """The name of the first block that, cut, gives something else than with zeros for the channels that go."""
    inputs, stream = prepare_inputs(store, few, 1, Place("device", store.device))
    hidden, kept = stream[0], torch.arange(cut.new) * cut.old // cut.new
    skeleton, rounding = store.skeleton, ROUNDING.get(store.model.dtype, 1e-3)
    with eager_experts(store.anatomy.model), eager_experts(small.anatomy.model):
        for wide in walk(store):
            call, down = inputs.calls.of(0, wide.index), down_of(wide, cut)
            if down is None:
                hidden = call(wide.module, hidden)
                continue
            matrix = torch.zeros_like(down.matrix)
            matrix[:, kept] = down.matrix[:, kept]
            down.assign(matrix)
            expected = _both(call, wide, down.module, hidden)
            stored = skeleton.checkpoint.read(skeleton.stored_under(wide.name))
            owners = {name: skeleton.owners[name].removeprefix(f"{wide.name}.") for name in stored}
            made = cut.cut(wide.index, stored, owners, skeleton.converted, kept)
            for narrow in walk(small, start=wide.index, stop=wide.index + 1, stored={wide.index: made}.__getitem__):
                last = next(layer for layer in narrow.layers if layer.name == down.name)
                found = _both(call, narrow, last.module, hidden)
            near = (  # nothing is near a NaN
                float((a.float() - b.float()).norm()) <= rounding * float(b.float().norm())
                for a, b in zip(found, expected, strict=True)
            )
            if not all(near):
                return wide.name
            hidden = expected[0]
    return None


def _both(call: BlockCall, block: BlockAnatomy, down: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What the block gives, and what its MLP's last layer does, which beside large hidden states would not be seen."""
    seen: list[Tensor] = []
    handle = down.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        given = call(block.module, hidden)
    finally:
        handle.remove()
    return given, seen[-1]
