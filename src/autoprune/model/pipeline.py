"""THE loop: for every block: observe, solve, assign; advance the stream; hand the block on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from autoprune.core.problem import LayerSolution, Method, Scope
from autoprune.core.sparsity import Target
from autoprune.events import BlockResult, Emit
from autoprune.machine.ranks import ALONE, Ranks
from autoprune.model.anatomy import Anatomy, Block
from autoprune.model.calls import PROBE_TOKENS, Calls, capture, probe_mirror
from autoprune.model.experts import eager_experts
from autoprune.model.gradients import prune_by_gradients
from autoprune.model.layers import Layer
from autoprune.model.precision import compute_word, replaying, tensor_cores
from autoprune.model.sharing import share
from autoprune.model.stages import advance, prune_by_inputs, prune_in_sequence
from autoprune.model.stream import Place, Stream
from autoprune.model.work import Inputs, Probe, Work


class Store(Protocol):
    """Gives and takes the weights of one block at a time; a resident model and a streamed one run the same loop."""

    @property
    def anatomy(self) -> Anatomy:
        """Blocks and layers of the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where blocks run."""
        ...

    @property
    def storage_dtype(self) -> torch.dtype | None:
        """What weights are rounded to when they are written; None if they stay as they are."""
        ...

    def embed(self, ids: Int[Tensor, "samples tokens"]) -> object:
        """Runs ids through the model's embedding and its (hollow) blocks."""
        ...

    def load(self, index: int) -> None:
        """The block's weights are on the device from now on."""
        ...

    def load_stored(self, index: int, stored: Mapping[str, Tensor]) -> None:
        """The block's weights are these, by their stored names."""
        ...

    def read_ahead(self, index: int) -> None:
        """This block will be loaded next."""
        ...

    def passed(self, number: int, block: Block, solutions: Mapping[str, LayerSolution]) -> None:
        """An earlier pass is done with the block; a later one follows on hidden states of its own."""
        ...

    def finish(self, block: Block, solutions: Mapping[str, LayerSolution]) -> None:
        """The block's weights are final: write them where they belong."""
        ...

    def release(self, index: int) -> None:
        """The block's weights are not needed for now."""
        ...


@dataclass
class Pass:
    """A method and the hidden states that its blocks see; methods that look at nothing have no stream.

    ``at_once``: how its blocks are called with all samples together, if inside a block it is to prune input group by
    input group, each behind the pruned ones before it. ``calls``: those of the pass alone, where another one would
    find in them what its blocks left there for later ones (keys and values).
    """

    method: Method
    stream: Stream | None
    at_once: Inputs | None = None
    calls: Calls | None = None

    def inputs(self, common: Inputs) -> Inputs:
        """How its blocks are called, micro-batch by micro-batch."""
        return replace(common, calls=self.calls) if self.calls else common


def prepare_inputs(
    store: Store, ids: Int[Tensor, "samples tokens"], batch: int, place: Place, ranks: Ranks = ALONE
) -> tuple[Inputs, Stream]:
    """One hollow forward pass over all samples of this rank: block 0's inputs, and how every block is called."""
    modules = [block.module for block in store.anatomy.blocks]
    store.load(0)
    mirror = probe_mirror(store.embed, modules, ids)
    store.release(0)
    mine = share(-(-len(ids) // batch), ranks)
    own = ids[mine.start * batch : mine.stop * batch]
    hidden, calls = capture(store.embed, modules, mirror, ids[:1, :PROBE_TOKENS])
    probe = Probe(hidden, tuple(calls))
    inputs = Inputs(len(own), ids.shape[1], batch, place, Calls(), mirror, len(ids), mine.start * batch, ranks, probe)
    stream = inputs.new_stream()
    for i, part in enumerate(own.split(batch)):
        stream[i], calls = capture(store.embed, modules, mirror, part)
        inputs.calls.add(calls)
    return inputs, stream


def prune_blocks(
    store: Store,
    passes: Sequence[Pass],
    chosen: Mapping[int, tuple[Layer, ...]],
    target: Target | None,
    inputs: Inputs,
    emit: Emit,
    start: int = 0,
) -> Iterator[BlockResult]:
    """Prunes block after block, from block ``start`` on, and yields what became of each.

    All passes work on a block before the next one is loaded, each on its own stream of hidden states: so that
    LLM-Barber finds the dense and the pruned weights of this block at hand, and of no other.
    """
    blocks = store.anatomy.blocks
    with eager_experts(store.anatomy.model):
        for block in blocks[start:]:
            store.load(block.index)
            if block is not blocks[-1]:
                store.read_ahead(block.index + 1)
            work = Work(block, chosen[block.index], target, inputs, emit, len(blocks))
            work.hold(store.storage_dtype, in_place=passes[0].at_once is not None)
            for number, step in enumerate(passes):
                work.inputs = step.inputs(inputs)
                _apply(work, step, last=block is blocks[-1])
                if step.stream is not None and step is not passes[-1]:
                    store.passed(number, block, work.solutions)
            store.finish(block, work.solutions)
            outcomes, sub_blocks = tuple(work.outcomes.values()), tuple(work.sub_blocks)
            del work  # with it go the dense weights and the patterns, before the next block is loaded
            store.release(block.index)
            yield BlockResult(block.index, len(blocks), block.name, outcomes, sub_blocks)


def replay_finished(
    store: Store,
    passes: Sequence[Pass],
    inputs: Inputs,
    emit: Emit,
    finished: int,
    stored: Callable[[int, int], dict[str, Tensor]],
) -> None:
    """Runs every pass's hidden states through the first ``finished`` blocks as that pass left them.

    ``stored(pass number, block index)`` gives those blocks' tensors. Nothing is observed or solved again.
    """
    blocks = store.anatomy.blocks
    with eager_experts(store.anatomy.model):
        for block in blocks[:finished]:
            for number, step in enumerate(passes):
                if step.stream is not None:
                    store.load_stored(block.index, stored(number, block.index))
                    called = step.at_once or step.inputs(inputs)
                    if called.probe:
                        called.probe.run(block)  # a later block may need what this one leaves behind
                    with replaying(step.method, block.module, step.stream.dtype) as dtype:
                        advance(Work(block, (), None, called, emit, len(blocks)), step.stream, dtype)
                    store.release(block.index)


def _apply(work: Work, step: Pass, *, last: bool) -> None:
    if step.method.scope is Scope.SUB_BLOCK:
        assert step.stream is not None
        with tensor_cores(compute_word(step.method)):
            prune_by_gradients(work, step.method, step.stream)
        return
    if step.at_once and step.stream is not None:
        prune_in_sequence(work, step.method, step.stream, step.at_once)
        return
    prune_by_inputs(work, step.method, step.stream)
    if step.stream is not None and not last:
        advance(work, step.stream)
