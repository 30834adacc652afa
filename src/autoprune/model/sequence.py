"""``--true_sequential``: inside a block, input group by input group, each behind the pruned ones before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autoprune.events import Progress
from autoprune.machine.allocator import kept_for_reuse
from autoprune.model.block import Block
from autoprune.model.layers import Layer
from autoprune.model.observe import InputGroup, check_finite
from autoprune.model.observing import input_groups, require_seen
from autoprune.model.watch import Use, Watch
from autoprune.steps.base import LayerStep


@torch.no_grad()
def prune_in_sequence(block: Block, steps: Sequence[LayerStep]) -> None:
    """One forward pass of all samples together, which advances the stream on the way.

    When a group's input arrives it is observed, and the group is pruned before its product is taken.
    """
    waiting = {layer.name: layers for layers in input_groups(block) for layer in layers}
    pruned: list[Layer] = []
    tokens = block.inputs.samples * block.inputs.tokens

    def coming(uses: list[Use]) -> None:
        for use in uses:
            layers = waiting.get(use.layer.name)
            if layers is None:
                continue  # pruned together with the first layer of its group
            for layer in layers:
                del waiting[layer.name]
            pruned.extend(layers)
            group = InputGroup.empty(layers, block.kinds, use.x, tokens)
            group.update(use.x)
            check_finite([group], block.name)
            for step in steps:
                block.solve([group], step.solve, step.needs.statistic)

    assert block.stream is not None
    with Watch(block.layers, coming=coming), kept_for_reuse():
        block.stream[0] = block.run(0, block.stream[0])
    block.emit(Progress(block.index, block.blocks, "observe and advance", 1, 1))
    require_seen(block, pruned)
    block.advanced = True
