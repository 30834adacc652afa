"""The walk that writes a smaller model: its blocks one after the other, healed beside what went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from autoprune.core.problem import LayerSolution
from autoprune.events import Emit, Phase
from autoprune.events import Step as Progress
from autoprune.model.block import Block
from autoprune.model.experts import eager_experts
from autoprune.model.stream import Stream
from autoprune.model.walk import Inputs, walk
from autoprune.steps.base import Step
from autoprune.storage.applied import apply_solutions
from autoprune.storage.journal import Notebook
from autoprune.storage.shards import CheckpointWriter
from autoprune.storage.store import CheckpointStore

Note = dict[str, Any]  # what the record says of one block that stays


@dataclass
class ShrinkWalk:
    """The blocks ``kept`` of a dense model on their way into a smaller one.

    ``stream`` are the hidden states as the smaller model makes them, ``dense`` those of the dense model, both None
    where nothing is healed; ``step`` heals.
    """

    store: CheckpointStore
    small: CheckpointStore
    kept: Sequence[int]
    notes: Notebook
    writer: CheckpointWriter
    inputs: Inputs
    stream: Stream | None
    step: Step | None
    emit: Emit
    dense: Stream | None = field(init=False)

    def __post_init__(self) -> None:
        self.total = len(self.store.anatomy.blocks)
        self.dense = self.stream.clone() if self.stream is not None and self.step is not None else None

    def write(self) -> list[Note]:
        """Writes every block once; those that an unfinished run has written are only run."""
        self.emit(Phase("writing", total=len(self.kept)))
        notes: list[Note] = []
        with eager_experts(self.store.anatomy.model), eager_experts(self.small.anatomy.model):
            self._advance_dense(0, self.kept[0])
            for new in range(len(self.kept)):
                notes.append(self._block(new))
                self.emit(Progress(new, len(self.kept), "write", 1, 1))
        return notes

    def _block(self, new: int) -> Note:
        old, writer = self.kept[new], self.writer
        self._advance_dense(old, self.kept[new + 1] if new + 1 < len(self.kept) else self.total)
        note: Note | None = self.notes.noted(f"block-{new:05d}") if writer.has_block(new) else None
        if note is not None:
            if self.stream is not None:
                self._run(new, writer.read_block(new), None)
            return note
        names = self.small.skeleton.stored_under(self.small.anatomy.blocks[new].name)
        before = self.small.skeleton.checkpoint.read(names)
        note = {"block": old}
        tensors = self._run(new, before, note) if self.stream is not None else before
        note["changed"] = sorted(name for name in tensors if tensors[name] is not before[name])
        writer.write_block(new, tensors)
        self.notes.note(f"block-{new:05d}", note)
        return note

    def _run(self, new: int, tensors: Mapping[str, Tensor], note: Note | None) -> dict[str, Tensor]:
        """Sends the stream through a block with these tensors, healed first if there is a ``note`` to take."""
        assert self.stream is not None
        found = dict(tensors)
        for anatomy in walk(self.small, start=new, stop=new + 1, stored=lambda _: tensors):
            placed = replace(anatomy, index=self.kept[new])  # it is called as the dense model calls it
            block = Block(
                placed, anatomy.layers, {}, self.inputs, self.emit, self.total, self.small.stored_as(anatomy)
            )
            block.begin_pass(self.inputs, self.stream, ())
            if note is not None and self.step is not None and self._beside_a_gap(new):
                found = self._healed(block, self.step, found, note)
            if new + 1 < len(self.kept):
                block.advance()
        return found

    def _healed(self, block: Block, step: Step, tensors: dict[str, Tensor], note: Note) -> dict[str, Tensor]:
        """The block's tensors trained towards the dense hidden states behind the gap, if that helped; zeros stay."""
        block.begin_pass(replace(self.inputs, held_out=step.needs.held_out), self.stream, ())
        block.dense_output = self.dense
        for layer in block.layers:
            keep = layer.matrix != 0
            solution = LayerSolution(block.anatomy.full_name(layer), keep)
            if not bool(keep.all()):
                block.solutions[layer.name] = solution
            block.record(layer, solution, None)
        step.apply(block)
        notes = next(iter(block.outcomes.values())).notes
        note["held_out"] = [notes["held_out_before"], notes["held_out_after"]]
        if notes["held_out_after"] < notes["held_out_before"]:
            made = apply_solutions(self.small.skeleton, block.anatomy, tensors, block.solutions, block.others)
            return {name: tensors[name] if torch.equal(made[name], tensors[name]) else made[name] for name in made}
        return tensors

    def _beside_a_gap(self, new: int) -> bool:
        """Whether a block went in front of this one or behind it."""
        around = (-1, *self.kept, self.total)
        return around[new + 2] - around[new] > 2

    @torch.no_grad()
    def _advance_dense(self, start: int, stop: int) -> None:
        """The dense hidden states go through these blocks."""
        if self.dense is None:
            return
        for block in walk(self.store, start=start, stop=stop):
            for i in self.inputs.batches:
                self.dense[i] = self.inputs.calls.of(i, block.index)(block.module, self.dense[i])
                self.emit(Progress(block.index, self.total, "dense", i + 1, len(self.inputs.batches)))
