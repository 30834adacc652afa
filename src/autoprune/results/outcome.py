"""What happened to a layer and to a sub-block: the plain values that reports are made of. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerOutcome:
    """What happened to one layer in the last step that touched it."""

    block: int
    name: str  # full module name, e.g. model.layers.0.self_attn.q_proj
    weights: int  # number of weights in the layer
    zeros: int  # number of zeros after pruning
    error: float | None = None  # relative output error |(W-W')X| / |WX| on calibration tokens; None: no data was read
    notes: dict[str, Any] = field(default_factory=dict)  # of the step: damping, inverted, grown, dropped, ...

    @property
    def sparsity(self) -> float:
        """Fraction of the layer's weights that is zero."""
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def sparsity_before(self) -> float | None:
        """Sparsity before weights were exchanged, or None where none were."""
        if "grown" not in self.notes or "dropped" not in self.notes or not self.weights:
            return None
        return (self.zeros + float(self.notes["grown"]) - float(self.notes["dropped"])) / self.weights

    @property
    def short_name(self) -> str:
        """The layer's name inside its block: ``self_attn.q_proj``."""
        return f".{self.name}".partition(f".{self.block}.")[2] or self.name


@dataclass(frozen=True)
class SubBlockOutcome:
    """What an exchange of kept against pruned weights did to one sub-block."""

    block: int
    name: str  # direct child of the block, e.g. self_attn; bare layers are joined: fc1+fc2
    loss_before: float  # mean squared error of the sub-block's output against the dense weights, same input
    loss_after: float
    compared: int  # pairs that could be compared
    inverted: int  # pairs whose pruned score exceeds the kept score
    exchanged: int  # pairs exchanged
