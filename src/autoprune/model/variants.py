"""Variants of the dense model that run beside it on a few samples, and how far their predictions are from its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from autoprune.core.divergence import token_shifts
from autoprune.events import Emit, Work
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.calls import Calls, Mirror, ending_in
from autoprune.model.stream import Stream
from autoprune.model.walk import Store


@dataclass(frozen=True)
class Variant:
    """The hidden states of one model on the samples, and how its blocks are called."""

    stream: Stream
    calls: Calls

    def apart(self) -> Variant:
        """A copy that goes its own way from here on, with what earlier blocks left for later ones."""
        return Variant(self.stream.clone(), self.calls.apart())

    @torch.no_grad()
    def run(self, block: BlockAnatomy) -> None:
        """Goes through the block as it is now."""
        for i in range(len(self.stream)):
            self.stream[i] = self.calls.of(i, block.index)(block.module, self.stream[i])


@torch.no_grad()
def divergences(
    store: Store,
    mirror: Mirror,
    ids: Int[Tensor, "samples tokens"],
    dense: Stream,
    others: Sequence[Stream],
    emit: Emit,
) -> list[float]:
    """For each of ``others`` the mean of ``KL(p || q)`` over all tokens that follow another, in nats.

    p is what the model predicts from the hidden states of ``dense`` behind the last block, q from the other's. All
    streams hold one sample at a time.
    """
    modules = [block.module for block in store.anatomy.blocks]

    def logits(stream: Stream, i: int) -> Float[Tensor, "tokens vocab"]:
        with ending_in(modules, mirror, stream[i]):
            return store.logits(ids[i : i + 1])[0, :-1]

    sums = [0.0] * len(others)
    for i, window in enumerate(ids):
        wanted, following = logits(dense, i), window[1:].to(store.device)
        for number, other in enumerate(others):
            (shift,) = token_shifts(wanted, [logits(other, i)], following)
            sums[number] += float(shift.kld.sum(dtype=torch.float64))
            emit(Work("divergence", i * len(others) + number + 1, len(ids) * len(others)))
    return [total / (len(ids) * (ids.shape[1] - 1)) for total in sums]
