"""What rotations are learned from, seen while a block runs: Grams behind its norms, squares of what enters writers,
Grams of what enters values and output projections.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from autoprune.core.rotation import RotationTerm
from autoprune.core.statistics import InputGram, InputNorm
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.fold import Norm, Seams, rotation_terms
from autoprune.model.heads import Heads
from autoprune.model.observe import InputObserver, check_finite


class TermObserver(contextlib.ExitStack):
    """Watches a block whose norms scale by one (use it as a context manager around the runs).

    One Gram is kept for each norm that reads the stream. Experts behind it share that of all tokens, routed to them
    or not: one for each of a hundred experts would not fit, and the entropy of a row knows no scale.
    """

    def __init__(self, block: BlockAnatomy, seams: Seams, tokens: int) -> None:
        super().__init__()
        self._block, self._seams = block, seams
        self._grams: dict[Norm, InputGram] = {}
        writers = [layer for layer in block.layers if layer.name in seams.writers]
        self._writers = InputObserver(writers, [InputNorm], tokens)

    def __enter__(self) -> TermObserver:
        for norm in dict.fromkeys(self._seams.readers.values()):
            handle = self._block.module.get_submodule(norm.name).register_forward_hook(self._behind(norm))
            self.callback(handle.remove)
        self.enter_context(self._writers)
        return self

    def next_pass(self) -> None:
        """A forward pass is over."""
        self._writers.next_pass()

    def terms(self) -> list[RotationTerm]:
        """What was seen, with the block's weights; routers and experts that no token was sent to make no term."""
        pruned = {layer.name for layer in self._block.layers}
        grams = {name: self._grams[norm].gram for name, norm in self._seams.readers.items() if name in pruned}
        squares: dict[str, Tensor] = {}
        for group in self._writers.groups:
            seen = group.statistics[InputNorm]
            assert isinstance(seen, InputNorm)
            squares |= {layer.name: seen.squares for layer in group.layers}
        return rotation_terms(self._block, self._seams, grams, squares)

    def _behind(self, norm: Norm) -> Callable[[Any, Any, Tensor], None]:
        def see(_module: Any, _args: Any, output: Tensor) -> None:
            x = output.detach().reshape(-1, output.shape[-1])
            self._grams.setdefault(norm, InputGram.empty(x.shape[-1], x.device)).update(x)

        return see


class HeadObserver(InputObserver):
    """Watches what enters the value layers and the output projections of a block's attention."""

    def __init__(self, block: BlockAnatomy, heads: Sequence[Heads], tokens: int) -> None:
        super().__init__([layer for found in heads for layer in found.layers(block)], [InputGram], tokens)
        self._block = block.name

    def grams(self) -> dict[str, Tensor]:
        """By layer: the Gram of what enters it. Raises: NumericsError naming a layer where it is not finite."""
        check_finite(self.groups, self._block)
        found: dict[str, Tensor] = {}
        for group in self.groups:
            seen = group.statistics[InputGram]
            assert isinstance(seen, InputGram)
            found |= {layer.name: seen.gram for layer in group.layers}
        return found
