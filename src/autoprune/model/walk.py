"""The walk over the blocks: the only code that loads and releases one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from autoprune.core.problem import LayerSolution
from autoprune.machine.ranks import ALONE, Ranks
from autoprune.model.anatomy import Anatomy, BlockAnatomy
from autoprune.model.calls import PROBE_TOKENS, BlockCall, Calls, Mirror, capture, probe_mirror
from autoprune.model.sharing import share
from autoprune.model.stream import Place, Stream


class Store:
    """Gives and takes the weights of one block at a time; a resident model and a streamed one run the same walk.

    What a method does not say here, it need not do: a model in memory has its weights at hand.
    """

    anatomy: Anatomy
    device: torch.device  # where blocks run
    resident: bool  # whether all blocks stay in memory

    def embed(self, ids: Int[Tensor, "samples tokens"]) -> object:
        """Runs ids through the model's embedding and its (hollow) blocks."""
        raise NotImplementedError

    def logits(self, ids: Int[Tensor, "samples tokens"]) -> Float[Tensor, "samples tokens vocab"]:
        """Of every token, by the whole model with the blocks as they are."""
        raise NotImplementedError

    def stored_as(self, block: BlockAnatomy) -> Mapping[str, torch.dtype]:
        """By the block's parameters: what new weights are rounded to when they are written; none stay as they are."""
        return {}

    def load(self, index: int) -> None:
        """The block's weights are on the device from now on."""

    def load_stored(self, index: int, stored: Mapping[str, Tensor]) -> None:
        """The block's weights are these, by their stored names."""
        raise NotImplementedError

    def read_ahead(self, index: int) -> None:
        """This block will be loaded next."""

    def passed(
        self,
        number: int,
        block: BlockAnatomy,
        solutions: Mapping[str, LayerSolution],
        others: Mapping[str, Tensor],
    ) -> None:
        """An earlier pass is done with the block; a later one follows on hidden states of its own."""

    def finish(
        self, block: BlockAnatomy, solutions: Mapping[str, LayerSolution], others: Mapping[str, Tensor]
    ) -> None:
        """The block's weights are final: write them. ``others``: parameters that are no layer's weight, by name."""

    def release(self, index: int) -> None:
        """The block's weights are not needed for now."""


def walk(
    store: Store,
    *,
    start: int = 0,
    stop: int | None = None,
    stored: Callable[[int], Mapping[str, Tensor]] | None = None,
) -> Generator[BlockAnatomy, None, None]:
    """Block after block, each with its weights on the device while it is worked on, and only then.

    ``stored``: gives other weights than the store's own, by stored names.
    """
    blocks = store.anatomy.blocks[start:stop]
    for block in blocks:
        if stored is None:
            store.load(block.index)
            if block is not blocks[-1]:
                store.read_ahead(block.index + 1)
        else:
            store.load_stored(block.index, stored(block.index))
        try:
            yield block
        finally:
            store.release(block.index)


@dataclass(frozen=True)
class Probe:
    """A few tokens on which any block can be run, to see in which order its parts run and which share an input."""

    hidden: Float[Tensor, "1 tokens width"]
    calls: tuple[BlockCall, ...]

    @torch.no_grad()
    def run(self, block: BlockAnatomy) -> Float[Tensor, "1 tokens width"]:
        """Runs the block, whatever the blocks before it would make of these tokens."""
        return self.calls[block.index](block.module, self.hidden)


@dataclass(frozen=True)
class Inputs:
    """What flows into the blocks: how many samples of how many tokens, where they are kept, how blocks are called.

    Of several ranks, each has a part of the samples.
    """

    samples: int  # on this rank
    tokens: int
    batch: int
    place: Place
    calls: Calls
    mirror: Mirror  # how a block returns its hidden states
    all_samples: int  # on all ranks
    before: int = 0  # samples on the ranks before this one
    ranks: Ranks = ALONE
    probe: Probe | None = None
    held_out: float = 0.0  # share of the samples on which nothing is fitted

    @classmethod
    def none(cls, ranks: Ranks = ALONE) -> Inputs:
        """Nothing flows: for steps that look at no data."""
        return cls(0, 0, 1, Place(), Calls(), Mirror(None), 0, ranks=ranks)

    @property
    def batches(self) -> range:
        """The numbers of all micro-batches on this rank."""
        return range(-(-self.samples // self.batch))

    @property
    def fitted(self) -> range:
        """The micro-batches that are looked at; the rest, at the end, is held out."""
        return self.batches[: len(self.batches) - len(self.judged)]

    @property
    def judged(self) -> range:
        """The micro-batches on which results are judged; none where nothing is held out."""
        count = min(len(self.batches) - 1, max(1, round(self.held_out * len(self.batches)))) if self.held_out else 0
        return self.batches[len(self.batches) - count :]

    @property
    def fitted_samples(self) -> int:
        """How many samples, on all ranks, are looked at."""
        return self.all_samples if not self.held_out else min(len(self.fitted) * self.batch, self.samples)

    def new_stream(self) -> Stream:
        """An empty stream of hidden states."""
        return Stream(self.samples, self.batch, self.place)


def prepare_inputs(
    store: Store, ids: Int[Tensor, "samples tokens"], batch: int, place: Place, ranks: Ranks = ALONE
) -> tuple[Inputs, Stream]:
    """One hollow forward pass over all samples of this rank: block 0's inputs, and how every block is called."""
    modules = [block.module for block in store.anatomy.blocks]
    for _ in walk(store, stop=1):
        mirror = probe_mirror(store.embed, modules, ids)
    mine = share(-(-len(ids) // batch), ranks)
    own = ids[mine.start * batch : mine.stop * batch]
    hidden, calls = capture(store.embed, modules, mirror, ids[:1, :PROBE_TOKENS])
    probe = Probe(hidden, tuple(calls))
    before = mine.start * batch
    inputs = Inputs(len(own), ids.shape[1], batch, place, Calls(), mirror, len(ids), before, ranks, probe)
    stream = inputs.new_stream()
    for i, part in enumerate(own.split(batch)):
        stream[i], calls = capture(store.embed, modules, mirror, part)
        inputs.calls.add(calls)
    return inputs, stream
