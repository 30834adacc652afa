"""How much every block turns the hidden states: one walk over the dense model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.shrinking import turned_share
from autoprune.events import Emit, Progress
from autoprune.model.stream import Stream
from autoprune.model.walk import Inputs, Store, walk


@dataclass(frozen=True)
class Turns:
    """What was seen of hidden states in front of and behind every block."""

    influence: tuple[float, ...]  # by block: the mean over all tokens of 1 - cos
    last: tuple[Float[Tensor, "samples width"], ...]  # of the last token, in front of every block and behind the last
    sizes: tuple[float, ...]  # the mean 2-norm over all tokens, in the same places


@torch.no_grad()
def observe_turns(store: Store, inputs: Inputs, stream: Stream, emit: Emit) -> Turns:
    """Runs the samples through all blocks; ``stream`` is block 0's input, and the last block's output in the end."""
    influence: list[float] = []
    last, sizes = [_last(stream)], [_size(stream)]
    count = len(store.anatomy.blocks)
    for block in walk(store):
        total, tokens = 0.0, 0
        for i in inputs.batches:
            before = stream[i]
            after = inputs.calls.of(i, block.index)(block.module, before)
            turned = turned_share(_rows(before), _rows(after))
            total, tokens = total + float(turned.sum()), tokens + len(turned)
            stream[i] = after
            emit(Progress(block.index, count, "influence", i + 1, len(inputs.batches)))
        influence.append(total / tokens)
        last.append(_last(stream))
        sizes.append(_size(stream))
    return Turns(tuple(influence), tuple(last), tuple(sizes))


def _rows(hidden: Float[Tensor, "samples tokens ..."]) -> Float[Tensor, "rows width"]:
    return hidden.flatten(2).flatten(0, 1)


def _last(stream: Stream) -> Float[Tensor, "samples width"]:
    return torch.cat([stream[i][:, -1].flatten(1).double().cpu() for i in range(len(stream))])


def _size(stream: Stream) -> float:
    """The first token of a window is left out: in many models it is a hundred times as large as the others."""
    norms = [stream[i][:, 1:].double().norm(dim=-1).flatten().cpu() for i in range(len(stream))]
    return float(torch.cat(norms).mean())
