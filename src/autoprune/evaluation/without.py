"""Which block the model misses least: divergence of the model without it from the dense one, block after block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from autoprune.core.divergence import token_shifts
from autoprune.events import Emit, Phase, Progress
from autoprune.model.calls import replaced_forward
from autoprune.model.stream import Place, Stream
from autoprune.model.walk import Inputs, Store, prepare_inputs, walk


@torch.no_grad()
def least_missed(
    store: Store, ids: Int[Tensor, "samples tokens"], count: int, place: Place, emit: Emit
) -> tuple[list[int], list[float]]:
    """``count`` blocks to drop, in the order in which they are chosen, and the mean divergence (nats) after each.

    Every round drops the block without which the logits are nearest to the dense model's. It walks once over the
    blocks, with the hidden states of every model that lacks one more block side by side.
    """
    dense: Stream | None = None
    gone: list[int] = []
    divergence: list[float] = []
    for number in range(count):
        emit(Phase(f"divergence without {number + 1} of {count} blocks", total=len(store.anatomy.blocks)))
        inputs, first = prepare_inputs(store, ids, 1, place)
        whole, without = _round(store, inputs, first, gone, emit)
        dense = dense or whole
        scores = {block: _divergence(store, inputs, dense, stream, ids) for block, stream in without.items()}
        best = min(scores, key=lambda block: (scores[block], block))
        gone.append(best)
        divergence.append(scores[best])
    return gone, divergence


def _round(
    store: Store, inputs: Inputs, first: Stream, gone: Sequence[int], emit: Emit
) -> tuple[Stream, dict[int, Stream]]:
    """The last hidden states of the model without ``gone``, and by block: without that one too."""
    without: dict[int, Stream] = {}
    for block in walk(store):
        if block.index in gone:
            continue
        before = first.clone()
        for stream in (first, *without.values()):
            for i in inputs.batches:
                stream[i] = inputs.calls.of(i, block.index)(block.module, stream[i])
        without[block.index] = before
        emit(Progress(block.index, len(store.anatomy.blocks), "divergence", 1, 1))
    return first, without


def _divergence(store: Store, inputs: Inputs, dense: Stream, other: Stream, ids: Tensor) -> float:
    """The mean over all tokens of the divergence of what follows, in nats."""
    modules = [block.module for block in store.anatomy.blocks]
    found: list[Tensor] = []
    for i, window in enumerate(ids):
        logits: list[Tensor] = []
        for final in (dense[i], other[i]):

            def finished(*_args: Any, _final: Tensor = final, **_kwargs: Any) -> Any:
                return inputs.mirror.wrap(_final)

            with replaced_forward(modules, [finished] * len(modules)):
                logits.append(store.logits(window[None])[0, :-1])
        (shift,) = token_shifts(logits[0], [logits[1]], window[1:].to(logits[0].device))
        found.append(shift.kld.double().cpu())
    return float(torch.cat(found).mean())
