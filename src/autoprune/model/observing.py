"""One block is run over its stream, and what enters its layers is observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autoprune.core.statistics import CrossGram, tensors_of
from autoprune.errors import NumericsError
from autoprune.model.layers import Layer
from autoprune.model.observe import InputGroup, InputObserver, check_finite, settle_experts
from autoprune.model.sharing import merge_groups, observed_as
from autoprune.model.watch import Use, Watch

if TYPE_CHECKING:
    from autoprune.model.block import Block


@torch.no_grad()
def observe_block(block: Block) -> list[InputGroup]:
    """The block's input groups with the statistics that its pass wants, of all ranks.

    Raises: NumericsError naming a layer that saw nothing, or no finite numbers.
    """
    inputs, stream = block.inputs, block.stream
    assert stream is not None
    tokens, before = inputs.fitted_samples * inputs.tokens, inputs.before * inputs.tokens
    with InputObserver(block.layers, observed_as(inputs.ranks, block.kinds), tokens, before) as observer:
        for i in block.batches("observe", inputs.fitted):
            block.run(i, stream[i])
            observer.next_pass()
    groups = merge_groups(inputs.ranks, observer.groups, block.layers, block.kinds)
    if CrossGram in block.kinds:
        observe_pairs(block, groups)
    groups = settle_experts(groups, block.layers)
    require_seen(block, [layer for group in groups for layer in group.layers])
    check_finite(groups, block.name)
    return groups


def input_groups(block: Block) -> list[list[Layer]]:
    """The layers of the block by the tensor that feeds them, seen on a few tokens."""
    assert block.inputs.probe is not None
    with InputObserver(block.layers, (), 1) as observer:
        block.inputs.probe.run(block.anatomy)
    return [group.layers for group in observer.groups]


def require_seen(block: Block, seen: Sequence[Layer]) -> None:
    """Raises: NumericsError naming a layer that is to be pruned by its inputs and saw none."""
    names = {layer.name for layer in seen}
    if unseen := [block.anatomy.full_name(layer) for layer in block.layers if layer.name not in names]:
        raise NumericsError(
            f"{unseen[0]} saw no input while its block ran, so it can't be pruned by its inputs; leave it dense"
            f" with --ignore {unseen[0]!r}"
        )


@torch.no_grad()
def observe_pairs(block: Block, groups: Sequence[InputGroup]) -> None:
    """Adds what the layers see of the same tokens in the dense and in the pruned stream, with their dense weights.

    Experts have none: a token may go to one expert in one stream and to another in the other.
    """
    stream, dense = block.stream, block.dense_stream
    assert stream is not None and dense is not None, "the step's needs must name a dense stream"
    experts = block.anatomy.experts
    for group in groups:
        if group.layers[0].name in experts:
            del group.statistics[CrossGram]
    groups = [group for group in groups if CrossGram in group.statistics]
    leaders = [group.layers[0] for group in groups]
    seen: dict[str, Tensor] = {}

    def note(uses: list[Use], result: Tensor) -> Tensor:
        seen.update({use.layer.name: use.x.reshape(-1, use.x.shape[-1]) for use in uses})
        return result

    for i in block.batches("observe both streams", block.inputs.fitted):
        with Watch(leaders, note):
            block.run_dense(i, dense[i])
            before = dict(seen)
            block.run(i, stream[i])
        for group, leader in zip(groups, leaders, strict=True):
            statistic = group.statistics[CrossGram]
            assert isinstance(statistic, CrossGram)
            statistic.update(before[leader.name], seen[leader.name])
        seen.clear()
    for group in groups:
        block.inputs.ranks.all_reduce(*tensors_of(group.statistics[CrossGram]))
