"""The walk that prunes: every step, on every block, pass by pass."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from jaxtyping import Int
from torch import Tensor

from autoprune.core.sparsity import Target, Unstructured
from autoprune.errors import RecipeError
from autoprune.events import BlockResult, Emit
from autoprune.model.anatomy import Anatomy
from autoprune.model.block import Block
from autoprune.model.calls import Calls
from autoprune.model.experts import eager_experts
from autoprune.model.layers import Layer
from autoprune.model.observe import Kind
from autoprune.model.precision import replaying
from autoprune.model.sequence import prune_in_sequence
from autoprune.model.stream import Place, Stream
from autoprune.model.walk import Inputs, Store, prepare_inputs, walk
from autoprune.steps.base import LayerStep, Step
from autoprune.steps.whole import ModelStep

Chosen = Mapping[int, tuple[Layer, ...]]  # by block: the layers to prune
Targets = Mapping[str, Target]  # by the layers' full names


def kinds_of(steps: Sequence[Step]) -> tuple[Kind, ...]:
    """The statistics that steps want, each once."""
    return tuple(dict.fromkeys(kind for step in steps for kind in step.needs.statistics))


@dataclass
class Pass:
    """Consecutive steps that share one stream of hidden states; None if they look at no data.

    ``at_once``: how its blocks are called with all samples together, if inside a block it is to prune input group by
    input group, each behind the pruned ones before it. ``calls``: those of the pass alone, where another one would
    find in them what its blocks left there for later ones (keys and values).
    """

    steps: tuple[Step, ...]
    stream: Stream | None
    at_once: Inputs | None = None
    calls: Calls | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The statistics that its steps want, each observed once."""
        return kinds_of(self.steps)

    def inputs(self, common: Inputs) -> Inputs:
        """How its blocks are called, micro-batch by micro-batch, and what share of the samples is held out."""
        held_out = max((step.needs.held_out for step in self.steps), default=0.0)
        return replace(common, calls=self.calls or common.calls, held_out=held_out)


@dataclass
class Streams:
    """All hidden states of a run: those of every pass, and of the dense model where a step asks for them."""

    passes: list[Pass]
    dense: Stream | None = None
    dense_calls: Calls | None = None


def split_passes(steps: Sequence[Step]) -> list[tuple[Step, ...]]:
    """Steps share a stream until one asks for its own, as LLM-Barber does: the papers' two passes over the model.

    Steps on the whole model come after the walk and belong to no pass.
    """
    passes: list[list[Step]] = []
    for step in steps:
        if isinstance(step, ModelStep):
            continue
        if not passes or step.needs.own_stream:
            passes.append([])
        passes[-1].append(step)
    return [tuple(group) for group in passes]


def open_streams(
    steps: Sequence[Step],
    inputs: Inputs,
    first: Stream | None,
    *,
    errors: bool = True,
) -> Streams:
    """One stream for every pass that looks at data; ``first`` is block 0's input, None if there is no data.

    ``errors``: measure layer errors in a first pass that looks at none itself.
    """
    passes: list[Pass] = []
    taken = False
    for number, group in enumerate(split_passes(steps)):
        looks = first is not None and (any(s.needs.samples for s in group) or (number == 0 and errors))
        stream = (first.clone() if taken else first) if looks and first is not None else None
        taken |= looks
        passes.append(Pass(group, stream, calls=inputs.calls.apart()))
    wanted = first is not None and any(step.needs.dense_stream for step in steps)
    dense = first.clone() if wanted and first is not None else None
    return Streams(passes, dense, inputs.calls.apart() if wanted else None)


def layer_targets(
    anatomy: Anatomy, chosen: Chosen, target: Target | None, ratios: Mapping[str, float] | None = None
) -> dict[str, Target]:
    """By the layers' full names: the target, or the ratio of the last pattern of ``ratios`` that fits the name.

    None where a given pattern is taken as it is. Raises: RecipeError if a pattern fits no layer.
    """
    if target is None:
        return {}
    names = [block.full_name(layer) for block in anatomy.blocks for layer in chosen[block.index]]
    targets: dict[str, Target] = dict.fromkeys(names, target)
    for pattern, ratio in (ratios or {}).items():
        fitting = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not fitting:
            raise RecipeError(f"--ratio {pattern}={ratio:g} fits no layer; layers are called {names[0]} and the like")
        targets |= dict.fromkeys(fitting, Unstructured(ratio))
    return targets


def prune_blocks(
    store: Store, streams: Streams, chosen: Chosen, targets: Targets, inputs: Inputs, emit: Emit, start: int = 0
) -> Iterator[BlockResult]:
    """Prunes block after block, from block ``start`` on, and yields what became of each.

    All passes work on a block before the next one is loaded, each on its own stream of hidden states: so that
    a later pass finds the dense and the pruned weights of this block at hand, and of no other.
    """
    passes, count = streams.passes, len(store.anatomy.blocks)
    in_place = passes[0].at_once is not None
    with eager_experts(store.anatomy.model):
        for anatomy in walk(store, start=start):
            layers, index = chosen[anatomy.index], anatomy.index
            called = replace(inputs, calls=streams.dense_calls or inputs.calls)
            block = Block(
                anatomy, layers, targets, called, emit, count, store.stored_as(anatomy), in_place, None, streams.dense
            )
            for number, current in enumerate(passes):
                block.begin_pass(current.at_once or current.inputs(inputs), current.stream, current.kinds)
                if current.at_once is not None:
                    prune_in_sequence(block, [step for step in current.steps if isinstance(step, LayerStep)])
                else:
                    for after, step in enumerate(current.steps, start=1):
                        block.advances = after == len(current.steps)
                        step.apply(block)
                        block.forget(kinds_of(current.steps[after:]))
                if current.stream is not None and not block.advanced and index < count - 1:
                    block.advance()
                if current.stream is not None and current is not passes[-1]:
                    store.passed(number, anatomy, block.solutions, block.others)
            store.finish(anatomy, block.solutions, block.others)
            streams.dense = block.dense_output
            outcomes, sub_blocks = tuple(block.outcomes.values()), tuple(block.sub_blocks)
            trained = tuple(f"{anatomy.name}.{name}" for name in block.others)
            del block  # with it go the dense weights and the patterns, before the next block is loaded
            yield BlockResult(index, count, anatomy.name, outcomes, sub_blocks, trained)


def replay_finished(
    store: Store,
    streams: Streams,
    inputs: Inputs,
    emit: Emit,
    finished: int,
    stored: Callable[[int, int], dict[str, Tensor]],
) -> None:
    """Runs every stream through the first ``finished`` blocks as its pass, or nobody, left them.

    ``stored(pass number, block index)`` gives those blocks' tensors. Nothing is observed or solved again.
    """
    count = len(store.anatomy.blocks)
    with eager_experts(store.anatomy.model):
        for index in range(finished):
            if streams.dense is not None:
                for anatomy in walk(store, start=index, stop=index + 1):
                    called = replace(inputs, calls=streams.dense_calls or inputs.calls)
                    streams.dense = Block(
                        anatomy, (), {}, called, emit, count, dense_stream=streams.dense
                    ).dense_output
            for number, current in enumerate(streams.passes):
                if current.stream is None:
                    continue
                for anatomy in walk(store, start=index, stop=index + 1, stored=partial(stored, number)):
                    called = current.at_once or current.inputs(inputs)
                    if called.probe:
                        called.probe.run(anatomy)  # a later block may need what this one leaves behind
                    block = Block(anatomy, (), {}, called, emit, count, stream=current.stream)
                    with replaying(current.steps[-1], anatomy.module, current.stream.dtype) as dtype:
                        block.advance(dtype)


def check_in_sequence(steps: Sequence[Step]) -> None:
    """Raises: RecipeError naming a step of the first pass that does not treat layers by what enters them."""
    for step in split_passes(steps)[0]:
        if not isinstance(step, LayerStep) and not step.needs.survey:
            raise RecipeError(
                f"--true_sequential prunes a block input group by input group, which {step.name} can't do; leave out"
                " one of the two"
            )


def send_at_once(store: Store, streams: Streams, ids: Int[Tensor, "samples tokens"], place: Place) -> None:
    """The first pass goes through each block once, with all samples together."""
    first = streams.passes[0]
    first.at_once, first.stream = prepare_inputs(store, ids, len(ids), place)
