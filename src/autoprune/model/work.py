"""One block while it is worked on, and what flows into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.order_statistics import count_zeros, zeroed
from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.sparsity import Target
from autoprune.errors import NumericsError
from autoprune.events import Emit, Step
from autoprune.machine.ranks import ALONE, Ranks
from autoprune.model.anatomy import Block
from autoprune.model.calls import BlockCall, Calls, Mirror
from autoprune.model.layers import Layer, hold_originals
from autoprune.model.stream import Place, Stream
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome


@dataclass(frozen=True)
class Probe:
    """A few tokens on which any block can be run, to see in which order its parts run and which of them share an
    input.
    """

    hidden: Float[Tensor, "1 tokens width"]
    calls: tuple[BlockCall, ...]

    @torch.no_grad()
    def run(self, block: Block) -> Float[Tensor, "1 tokens width"]:
        """Runs the block, whatever the blocks before it would make of these tokens."""
        return self.calls[block.index](block.module, self.hidden)


@dataclass(frozen=True)
class Inputs:
    """What flows into the blocks: how many samples of how many tokens, where they are kept, how blocks are called.

    Of several ranks, each has a part of the samples.
    """

    samples: int  # on this rank
    tokens: int
    batch: int
    place: Place
    calls: Calls
    mirror: Mirror  # how a block returns its hidden states
    all_samples: int  # on all ranks
    before: int = 0  # samples on the ranks before this one
    ranks: Ranks = ALONE
    probe: Probe | None = None

    @classmethod
    def none(cls, ranks: Ranks = ALONE) -> Inputs:
        """Nothing flows: for methods that look at no data."""
        return cls(0, 0, 1, Place(), Calls(), Mirror(None), 0, ranks=ranks)

    def new_stream(self) -> Stream:
        """An empty stream of hidden states."""
        return Stream(self.samples, self.batch, self.place)


@dataclass
class Work:
    """One block while it is worked on, and what was decided about it so far."""

    block: Block
    layers: tuple[Layer, ...]  # those to prune
    target: Target | None
    inputs: Inputs
    emit: Emit
    blocks: int
    solutions: dict[str, LayerSolution] = field(default_factory=dict)
    outcomes: dict[str, LayerOutcome] = field(default_factory=dict)
    sub_blocks: list[SubBlockOutcome] = field(default_factory=list)
    storage_dtype: torch.dtype | None = None  # what the weights are rounded to before they are used again
    in_place: bool = False  # whether weights are overwritten, because the block is running while they change

    def hold(self, storage_dtype: torch.dtype | None, *, in_place: bool) -> None:
        """Holds the block's weights as they are now: what "dense" means from here on."""
        self.storage_dtype, self.in_place = storage_dtype, in_place
        self.originals = hold_originals(self.layers, in_place)  # by parameter name
        self.dense: dict[str, Tensor] = {
            layer.name: layer.of(self.originals[layer.parameter_name]) for layer in self.layers
        }

    def batches(self, phase: str) -> Iterator[int]:
        """Indices of the micro-batches; each one is reported when it is done."""
        total = -(-self.inputs.samples // self.inputs.batch)
        for i in range(total):
            yield i
            self.emit(Step(self.block.index, self.blocks, phase, i + 1, total))

    def problem(self, layer: Layer, statistic: object | None = None) -> LayerProblem:
        """The layer's problem as it stands now."""
        before = self.solutions.get(layer.name)
        return LayerProblem(
            self.block.full_name(layer),
            layer.matrix,
            self.target,
            statistic,  # type: ignore[arg-type]
            self.dense[layer.name] if before else None,
            (
                before.keep & (layer.matrix != 0) if before else None
            ),  # a dense weight may be zero by itself: then nothing survives there
        )

    def assign(self, layer: Layer, solution: LayerSolution) -> None:
        """Puts a solution into the model, rounded as it will be stored.

        Raises: NumericsError naming the layer if a new weight is not finite.
        """
        dtype = self.dense[layer.name].dtype
        value = self.dense[layer.name]
        if solution.weight is not None:
            stored = solution.weight.to(self.storage_dtype or dtype)
            solution, value = replace(solution, weight=stored), stored.to(dtype)  # held like this until it is written
            if not bool(torch.isfinite(value).all()):
                raise NumericsError(
                    f"{solution.name}: the method produced weights that are not finite; try --dtype float32 or a"
                    " larger --damping"
                )
        layer.assign(zeroed(value, solution.keep), in_place=self.in_place)
        self.solutions[layer.name] = solution

    def record(self, layer: Layer, solution: LayerSolution, error: float | None) -> None:
        """Notes what became of the layer; zeros are counted in the weights, not in the pattern."""
        zeros = count_zeros(layer.matrix)
        notes = (
            {**self.outcomes[layer.name].notes, **solution.notes} if layer.name in self.outcomes else solution.notes
        )
        self.outcomes[layer.name] = LayerOutcome(
            self.block.index, self.block.full_name(layer), layer.count, zeros, error, notes
        )
