"""The walk that writes a smaller model: its blocks one after the other, healed beside what went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoprune.core.problem import LayerSolution
from autoprune.errors import ModelError
from autoprune.events import Emit, Phase, Progress
from autoprune.model.block import Block
from autoprune.model.experts import eager_experts
from autoprune.model.rescale import rescaled
from autoprune.model.stream import Stream
from autoprune.model.walk import Inputs, walk
from autoprune.run.shrink_cuts import Cuts, down_of, experts_left, narrowed
from autoprune.run.shrink_width import ROUNDING
from autoprune.steps.base import Step
from autoprune.storage.applied import apply_solutions
from autoprune.storage.journal import Journal
from autoprune.storage.smaller import renumbered
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
    journal: Journal
    inputs: Inputs
    stream: Stream | None
    step: Step | None
    cuts: Cuts
    factors: Sequence[float]  # by block: what it adds is taken so many times
    emit: Emit
    dense: Stream | None = field(init=False)

    def __post_init__(self) -> None:
        self.total = len(self.store.anatomy.blocks)
        self.dense = self.stream.clone() if self.stream is not None and self.step is not None else None
        self._dense_calls = (
            self.inputs.calls.apart()
        )  # what its blocks leave for later ones is not the smaller model's

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
        old, writer = self.kept[new], self.journal.writer
        self._advance_dense(old, self.kept[new + 1] if new + 1 < len(self.kept) else self.total)
        note: Note | None = self.noted(new) if writer.has_block(new) else None
        if note is not None:
            if self.stream is not None:
                self._run(new, writer.read_block(new), None)
            return note
        skeleton = self.store.skeleton
        stored = skeleton.checkpoint.read(skeleton.stored_under(self.store.anatomy.blocks[old].name))
        before = _renamed(stored, old, new)
        note = {"block": old}
        tensors = self._cut(new, stored, note) if self.cuts.touches(old) else before
        if self.factors[new] != 1.0:
            tensors = self._rescaled(new, tensors)
            note["scaled"] = self.factors[new]
        if self.stream is not None:
            tensors = self._run(new, tensors, note)
        known = {id(tensor): name for name, tensor in stored.items()}
        note["changed"] = sorted(name for name, tensor in tensors.items() if id(tensor) not in known)
        moved = {name: known[id(t)] for name, t in tensors.items() if id(t) in known and t is not before.get(name)}
        note |= {"moved": moved} if moved else {}  # experts with a new number
        writer.write_block(new, tensors)
        self.note(new, note)
        return note

    def note(self, new: int, note: Note) -> None:
        """Notes what became of a block, for the run that goes on with this one."""
        self.journal.note(f"block-{new:05d}", note)

    def noted(self, new: int) -> Note | None:
        """What an unfinished run has noted of a block."""
        found: Note | None = self.journal.noted(f"block-{new:05d}")
        return found

    def _cut(self, new: int, stored: Mapping[str, Tensor], note: Note) -> dict[str, Tensor]:
        """A block's tensors without the experts and channels that go, by their names in the smaller model."""
        old, skeleton, made = self.kept[new], self.store.skeleton, dict(stored)
        prefix = f"{self.store.anatomy.blocks[old].name}."
        owners = {name: skeleton.owners[name].removeprefix(prefix) for name in stored}
        experts, width, alone = self.cuts.experts, self.cuts.width, skeleton.converted
        for anatomy in walk(self.store, start=old, stop=old + 1):
            down = down_of(anatomy, width) if width is not None else None
            layers = (down,) if down is not None else ()
            stored_as = self.store.stored_as(anatomy)
            block = Block(anatomy, layers, {}, self.inputs, self.emit, self.total, stored_as, stream=self.stream)
            if experts is not None and experts.blocks[old]:
                made = experts.cut(old, made, owners, alone, experts_left(block, self.cuts, note))
            if width is not None and down is not None:
                kept, weight = narrowed(block, down, width.new)
                name = next(name for name, owner in owners.items() if owner == down.parameter_name)
                made[name] = down.of(weight).to("cpu", made[name].dtype).contiguous()
                made = width.cut(old, made, owners, alone, kept)
        return _renamed(made, old, new)

    def _run(self, new: int, tensors: Mapping[str, Tensor], note: Note | None) -> dict[str, Tensor]:
        """Sends the stream through a block with these tensors, healed first if there is a ``note`` to take."""
        assert self.stream is not None
        found, old = dict(tensors), self.kept[new]
        damaged = self._beside_a_gap(new) or self.cuts.touches(old)
        for anatomy in walk(self.small, start=new, stop=new + 1, stored=lambda _: tensors):
            placed, stored_as = replace(anatomy, index=old), self.small.stored_as(anatomy)
            # by its old number it is called as the dense model calls it
            block = Block(placed, anatomy.layers, {}, self.inputs, self.emit, self.total, stored_as)
            block.begin_pass(self.inputs, self.stream, ())
            if note is not None and self.step is not None and damaged:
                found = self._healed(block, self.step, found, note)
            if new + 1 < len(self.kept):
                block.advance()
        return found

    def _rescaled(self, new: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The block's tensors with which it adds more or less.

        Raises: ModelError if it then does something else too.
        """
        assert self.stream is not None
        name, old = self.store.anatomy.blocks[self.kept[new]].name, self.kept[new]
        for anatomy in walk(self.small, start=new, stop=new + 1, stored=partial(_given, tensors)):
            run = partial(self.inputs.calls.of(0, old), anatomy.module)
            rounding = ROUNDING.get(self.store.model.dtype, 1e-3)
            values = rescaled(anatomy, run, self.stream[0], self.factors[new], 10 * rounding)
            if values is None:
                raise ModelError(
                    f"{name}: what it adds to the hidden states can't be scaled by its layers' weights, as where a"
                    " norm stands behind them; choose --heal reconstruct, or none"
                )
            found = {f"{anatomy.name}.{parameter}": value.cpu() for parameter, value in values.items()}
            made = self.small.skeleton.as_stored(found, tensors)
        return tensors | {name: value.to(tensors[name].dtype).contiguous() for name, value in made.items()}

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
                self.dense[i] = self._dense_calls.of(i, block.index)(block.module, self.dense[i])
                self.emit(Progress(block.index, self.total, "dense", i + 1, len(self.inputs.batches)))


def _renamed(tensors: Mapping[str, Tensor], old: int, new: int) -> dict[str, Tensor]:
    """A block's tensors by their names under another number."""
    return {renumbered(name, old, new): tensor for name, tensor in tensors.items()}


def _given(tensors: Mapping[str, Tensor], _: int) -> Mapping[str, Tensor]:
    """These tensors, for whichever block."""
    return tensors
