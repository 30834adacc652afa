"""A walk that only looks: what a step wants to know of the whole dense model before anything is pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoprune.core.sparsity import Target
from autoprune.events import Emit, Phase
from autoprune.model.block import Block
from autoprune.model.experts import eager_experts
from autoprune.model.observe import InputGroup, Kind
from autoprune.model.pruning import Chosen, Targets
from autoprune.model.stream import Stream
from autoprune.model.walk import Inputs, Store, walk
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
    emit: Emit

    def blocks(self, statistic: Kind | None) -> Iterator[tuple[Block, Sequence[InputGroup]]]:
        """Every block with the input groups of its layers; each is left as it is, and the walk goes on behind it."""
        inputs, stream = replace(self.inputs, calls=self.inputs.calls.apart()), self.first.clone()
        count, kinds = len(self.store.anatomy.blocks), (statistic,) if statistic else ()
        with eager_experts(self.store.anatomy.model):
            for anatomy in walk(self.store):
                block = Block(anatomy, self.chosen[anatomy.index], self.targets, inputs, self.emit, count)
                block.begin_pass(inputs, stream, kinds)
                yield block, block.observe(statistic)
                block.advance()


def survey(
    steps: Sequence[Step],
    store: Store,
    inputs: Inputs,
    first: Stream | None,
    chosen: Chosen,
    targets: Targets,
    target: Target | None,
    emit: Emit,
) -> tuple[Targets, dict[str, Any]]:
    """The targets of all layers as the steps' surveys settle them, and by step what the record says of its survey."""
    settled: Mapping[str, Target] = targets
    notes: dict[str, Any] = {}
    for step in steps:
        if step.needs.survey:
            assert first is not None
            emit(Phase(f"survey for {step.name}", total=len(store.anatomy.blocks)))
            found = step.survey(DenseSurvey(store, inputs, first, chosen, settled, target, emit))
            settled = {**settled, **found.targets}
            notes[step.name] = dict(found.notes)
    return settled, notes
