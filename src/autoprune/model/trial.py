"""An attempt on a block that may be undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoprune.model.layers import Expert

if TYPE_CHECKING:
    from autoprune.model.block import Block


class Trial:
    """A block's weights and decisions as they were, until one says that the new ones are to stay."""

    def __init__(self, block: Block) -> None:
        self._block, self.kept = block, False
        fused = {layer.parameter_name for layer in block.layers if isinstance(layer, Expert)}
        self._values = {
            name: (p, p.data.clone() if name in fused or block.in_place else p.data)
            for name, p in block.module.named_parameters()
        }
        self._decided = {name: dict(getattr(block, name)) for name in ("solutions", "outcomes", "others", "dense")}
        self._sub_blocks, self._retargeted = list(block.sub_blocks), set(block._retargeted)

    def keep(self) -> None:
        """What was assigned stays."""
        self.kept = True

    def roll_back(self) -> None:
        """The block as it was, bit for bit."""
        for parameter, value in self._values.values():
            parameter.data = value
        for name, decided in self._decided.items():
            setattr(self._block, name, decided)
        self._block.sub_blocks, self._block._retargeted = self._sub_blocks, self._retargeted
