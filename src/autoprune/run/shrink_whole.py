"""The last part of healing: all blocks of a smaller model learn the dense model's predictions together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from autoprune.events import Phase
from autoprune.model.whole import LastStates
from autoprune.run.shrink_walk import Note, ShrinkWalk
from autoprune.run.whole import Losses, Whole, block_values
from autoprune.steps.whole import ModelStep


def written(walk: ShrinkWalk, steps: Sequence[ModelStep], ids: Tensor) -> tuple[list[Note], Losses]:
    """Writes all blocks, block by block, and then as ``steps`` leave the whole model: what became of them, and the
    steps' losses.

    The dense model is not needed for it: its last hidden states are what the walk leaves. A run that was stopped while
    it trained begins the training again, and comes to the same bits.
    """
    journal = walk.journal
    if (known := journal.finished()) is not None:
        journal.put_finished()
        return [note for new in range(len(walk.kept)) if (note := walk.noted(new)) is not None], known
    notes = walk.write()
    if not steps:
        return notes, {}
    assert walk.dense is not None, "a step on the whole model comes behind one that heals block by block"
    walk.stream, small = None, walk.small  # the dense hidden states are all that is needed
    walk.emit(Phase("reading the smaller model"))
    for block in small.anatomy.blocks:
        small.load_stored(block.index, journal.writer.read_block(block.index))
    layers = {block.index: block.layers for block in small.anatomy.blocks}
    whole = Whole(small, layers, ids, walk.inputs.batch, walk.emit)
    values, losses = whole.train(steps, LastStates(walk.dense, walk.inputs.mirror), block_values(small))
    for new, changed in (whole.keep(journal, values) if values is not None else {}).items():
        notes[new] = {**notes[new], "changed": sorted({*notes[new]["changed"], *changed})}
        walk.note(new, notes[new])
    small.release_all()
    journal.mark_finished(losses)
    journal.put_finished()
    return notes, losses
