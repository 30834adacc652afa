"""The vocabulary of pruning: a layer's problem, its solution, and what a method is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from autoprune.core.sparsity import Target
from autoprune.core.statistics import GradientEnergy, InputGram, InputNorm, Statistic


class Scope(Enum):
    """Which layers a method solves together."""

    INPUT_GROUP = "input group"  # layers fed by one and the same tensor (q, k, v; gate, up)
    SUB_BLOCK = "sub-block"  # the attention half or the MLP half of a block


@dataclass(frozen=True)
class LayerProblem:
    """One layer to prune.

    ``weight`` is the current value ``[out, in]`` in the model's dtype; ``dense`` and ``keep`` are given to methods
    that rebuild an already pruned model: the dense value and the present keep pattern. Methods compute in float32.
    """

    name: str
    weight: Float[Tensor, "out in"]
    target: Target | None
    statistic: Statistic | None = None
    dense: Float[Tensor, "out in"] | None = None
    keep: Bool[Tensor, "out in"] | None = None


@dataclass(frozen=True)
class LayerSolution:
    """The keep pattern, and the new weights ``[out, in]``; ``weight`` is None when survivors have their dense
    value.
    """

    name: str
    keep: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass whose fields are its hyper-parameters.

    ``statistic`` is what must be observed first (None: nothing), ``scope`` which layers come to ``solve`` together.
    """

    @property
    def statistic(self) -> type[InputNorm] | type[InputGram] | type[GradientEnergy] | None:
        """What has to be accumulated; methods state it as a class variable."""
        ...

    @property
    def scope(self) -> Scope:
        """Which layers are solved together; methods state it as a class variable."""
        ...

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """One solution for each problem, in order."""
        ...
