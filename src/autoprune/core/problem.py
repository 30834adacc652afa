"""The vocabulary of pruning: a layer's problem and its solution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.core.sparsity import Target
from autoprune.core.statistics import Statistic


@dataclass(frozen=True)
class LayerProblem:
    """One layer to prune.

    ``weight`` is the current value ``[out, in]`` in the model's dtype; steps compute in float32. ``dense`` is what the
    layer's output is measured against: the dense weight, or what a step put in its place. ``keep`` is the pattern that
    earlier steps left. Both are None for the first step that comes to a layer.
    """

    name: str
    weight: Float[Tensor, "out in"]
    target: Target | None
    statistic: Statistic | None = None
    dense: Float[Tensor, "out in"] | None = None
    keep: Bool[Tensor, "out in"] | None = None


@dataclass(frozen=True)
class LayerSolution:
    """The keep pattern, and the new weights ``[out, in]``; without ``weight`` survivors have their dense value."""

    name: str
    keep: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"] | None = None
    notes: dict[str, Any] = field(default_factory=dict)  # JSON values: what the record says of the layer
