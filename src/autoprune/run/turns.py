"""What a rotation does with each block: watch it, and turn it when all is learned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.heads import learn_heads
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.fold import Fold, fold_block, folded_names
from autoprune.model.heads import HeadFold, Heads
from autoprune.model.terms import HeadObserver, TermObserver
from autoprune.recipe.options import RotationOptions
from autoprune.storage.rotated import TermFiles


class Watched(contextlib.ExitStack):
    """One block while it runs on the calibration windows; ``keep`` writes what was seen."""

    def __init__(
        self, block: BlockAnatomy, terms: TermObserver | None, grams: HeadObserver | None, files: TermFiles
    ) -> None:
        super().__init__()
        self._index, self._terms, self._grams, self._files = block.index, terms, grams, files
        for observer in (terms, grams):
            if observer is not None:
                self.enter_context(observer)

    def next_pass(self) -> None:
        """A forward pass is over."""
        for observer in (self._terms, self._grams):
            if observer is not None:
                observer.next_pass()

    def keep(self) -> None:
        """Into files: all blocks' would not fit into memory."""
        if self._terms is not None:
            self._files.keep(self._index, self._terms.terms())
        if self._grams is not None:
            self._files.keep_grams(self._index, self._grams.grams())


@dataclass(frozen=True)
class Turns:
    """What turns in a model: the hidden states, attention's values, or both."""

    fold: Fold | None
    heads: HeadFold | None
    how: RotationOptions
    files: TermFiles

    def watching(self, block: BlockAnatomy, tokens: int) -> Watched:
        """Watches the block; where hidden states turn, its norms scale by one from now on."""
        terms = None
        if self.fold is not None:
            seams = self.fold.blocks[block.index]
            fold_block(block, seams, torch.eye(self.fold.width, dtype=torch.float64))
            terms = TermObserver(block, seams, tokens)
        grams = HeadObserver(block, self._heads(block), tokens) if self._heads(block) else None
        return Watched(block, terms, grams, self.files)

    def turn(
        self,
        block: BlockAnatomy,
        rotation: Float[Tensor, "width width"] | None,
        entropies: list[tuple[float, float]],
        tick: Callable[[], None],
    ) -> tuple[str, ...]:
        """Turns the block, its values last, and adds the entropy of each attention before and after to ``entropies``.

        ``tick()`` is called after every step of learning.
        Gives the names of the parameters that changed; some are in float64 now, to be rounded once.
        """
        heads = self._heads(block)
        names = [name for found in heads for name in found.names(block)]
        for name in names:
            block.module.get_parameter(name).data = block.module.get_parameter(name).data.double()
        readers: Container[str] = ()
        if self.fold is not None and rotation is not None:
            seams = self.fold.blocks[block.index]
            fold_block(block, seams, rotation)
            names, readers = [*names, *folded_names(block, seams)], seams.readers
        for found in heads:
            entropies.append(self._turn_heads(block, found, rotation if found.value in readers else None, tick))
        return tuple(dict.fromkeys(names))

    def _turn_heads(
        self,
        block: BlockAnatomy,
        found: Heads,
        rotation: Float[Tensor, "width width"] | None,
        tick: Callable[[], None],
    ) -> tuple[float, float]:
        grams = self.files.read_grams(block.index, found.layers(block)[0].matrix.device)
        gram = grams[found.value]
        turned = torch.eye(len(gram)).to(gram) if rotation is None else rotation.to(gram)
        term = found.term(block, ((gram @ turned) * turned).sum(0), grams[found.output])
        with torch.enable_grad():
            learned = learn_heads(term, self.how.rotate_steps, self.how.rotate_rate, tick)
        found.turn(block, learned.matrices)
        return learned.before, learned.after

    def _heads(self, block: BlockAnatomy) -> Sequence[Heads]:
        return () if self.heads is None else self.heads.blocks[block.index]
