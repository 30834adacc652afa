"""Which block the model misses least: divergence of the model without it from the dense one, block after block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.events import Emit, Phase, Progress
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.stream import Place, Stream
from autoprune.model.variants import Variant, divergences
from autoprune.model.walk import Store, prepare_inputs, walk


@torch.no_grad()
def least_missed(
    store: Store, ids: Int[Tensor, "samples tokens"], count: int, place: Place, emit: Emit
) -> tuple[list[int], list[float]]:
    """``count`` blocks to drop, in the order in which they are chosen, and the mean divergence (nats) after each.

    Every round drops the block without which the logits are nearest to the dense model's. It walks once over the
    blocks, with the hidden states of every model that lacks one more block side by side.
    Raises: ModelError naming a block that does not run without an earlier one.
    """
    dense: Stream | None = None
    gone: list[int] = []
    divergence: list[float] = []
    for number in range(count):
        emit(Phase(f"divergence without {number + 1} of {count} blocks", total=len(store.anatomy.blocks)))
        inputs, first = prepare_inputs(store, ids, 1, place)
        without = _round(store, Variant(first, inputs.calls), gone, emit)
        dense = dense or first
        found = divergences(store, inputs.mirror, ids, dense, [*without.values()], emit)
        scores = dict(zip(without, found, strict=True))
        best = min(scores, key=lambda block: (scores[block], block))
        gone.append(best)
        divergence.append(scores[best])
    return gone, divergence


def _round(store: Store, whole: Variant, gone: Sequence[int], emit: Emit) -> dict[int, Stream]:
    """Takes the model without ``gone`` through all blocks; by block, the last hidden states without that one too."""
    without: dict[int, Variant] = {}
    for block in walk(store):
        if block.index in gone:
            continue
        before = whole.apart()  # a block that is gone leaves nothing for later ones
        whole.run(block)
        for index, variant in without.items():
            _run(variant, block, index)
        without[block.index] = before
        emit(Progress(block.index, len(store.anatomy.blocks), "divergence", 1, 1))
    return {index: variant.stream for index, variant in without.items()}


def _run(variant: Variant, block: BlockAnatomy, gone: int) -> None:
    """Raises: ModelError if the block needs what the one that is gone would have left for it."""
    try:
        variant.run(block)
    except (LookupError, TypeError, AttributeError, ValueError, NameError) as error:  # as its code ends without it
        raise ModelError(
            f"{block.name} does not run without block {gone}, which leaves something for it ({type(error).__name__}:"
            f" {error}), so this model's blocks can't be made fewer; give --mlp or --experts"
        ) from error
