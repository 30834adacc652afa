"""A walk that only looks: what a step wants to know of the whole dense model before anything is pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from autoprune.core.sparsity import Target
from autoprune.events import Emit, Phase
from autoprune.model.block import Block
from autoprune.model.calls import Mirror
from autoprune.model.experts import eager_experts
from autoprune.model.observe import InputGroup, Kind
from autoprune.model.pruning import Chosen, Targets
from autoprune.model.stream import Stream
from autoprune.model.variants import Variant, divergences
from autoprune.model.walk import Inputs, Store, prepare_inputs, walk
from autoprune.steps.base import Block as StepBlock
from autoprune.steps.base import Step


@dataclass
class DenseSurvey:
    """The dense model on the calibration samples, for steps to look at."""

    store: Store
    inputs: Inputs
    first: Stream  # block 0's input
    chosen: Chosen
    targets: Targets
    target: Target | None
    ids: Int[Tensor, "samples tokens"]
    emit: Emit
    _few: _Few | None = field(init=False, default=None)

    def blocks(self, statistic: Kind | None, *, followed: int = 0) -> Iterator[tuple[Block, Sequence[InputGroup]]]:
        """Every block with the input groups of its layers; each is left as it is, and the walk goes on behind it."""
        inputs, stream = replace(self.inputs, calls=self.inputs.calls.apart()), self.first.clone()
        count, kinds = len(self.store.anatomy.blocks), (statistic,) if statistic else ()
        few = self._few = self._beside(followed) if followed else None
        with eager_experts(self.store.anatomy.model):
            for anatomy in walk(self.store):
                block = Block(anatomy, self.chosen[anatomy.index], self.targets, inputs, self.emit, count)
                block.begin_pass(inputs, stream, kinds)
                earlier = len(few.variants) if few else 0
                yield block, block.observe(statistic)
                block.advance()
                for variant in (few.dense, *few.variants[:earlier]) if few else ():
                    variant.run(anatomy)

    def follow(self, block: StepBlock) -> None:
        """A variant of the model that differs from the dense one in this block, as it is now."""
        assert self._few is not None, "blocks was not told of samples to follow"
        variant = self._few.dense.apart()
        variant.run(self.store.anatomy.blocks[block.index])
        self._few.variants.append(variant)

    def divergences(self) -> list[float]:
        """How far every variant's predictions are from the dense model's."""
        assert self._few is not None, "blocks was not told of samples to follow"
        few, streams = self._few, [variant.stream for variant in self._few.variants]
        return divergences(self.store, few.mirror, few.ids, few.dense.stream, streams, self.emit)

    def _beside(self, samples: int) -> _Few:
        """The first samples, one at a time: so what is found does not depend on how many run together."""
        inputs, first = prepare_inputs(self.store, self.ids[:samples], 1, self.inputs.place)
        return _Few(self.ids[:samples], inputs.mirror, Variant(first, inputs.calls))


@dataclass
class _Few:
    """The samples that variants of the model run on."""

    ids: Int[Tensor, "samples tokens"]
    mirror: Mirror
    dense: Variant
    variants: list[Variant] = field(default_factory=list)


def survey(
    steps: Sequence[Step],
    store: Store,
    inputs: Inputs,
    first: Stream | None,
    chosen: Chosen,
    targets: Targets,
    target: Target | None,
    ids: Int[Tensor, "samples tokens"] | None,
    emit: Emit,
) -> tuple[Targets, dict[str, Any]]:
    """The targets of all layers as the steps' surveys settle them, and by step what the record says of its survey."""
    settled: Mapping[str, Target] = targets
    notes: dict[str, Any] = {}
    for step in steps:
        if step.needs.survey:
            assert first is not None and ids is not None
            emit(Phase(f"survey for {step.name}", total=len(store.anatomy.blocks)))
            found = step.survey(DenseSurvey(store, inputs, first, chosen, settled, target, ids, emit))
            settled = {**settled, **found.targets}
            notes[step.name] = dict(found.notes)
    return settled, notes
