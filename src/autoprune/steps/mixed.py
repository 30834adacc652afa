"""The mixed target: a layer is solved towards what also makes up for its inputs' error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autoprune.core.mixed import mixed_target
from autoprune.core.statistics import CrossGram, InputGram
from autoprune.steps.base import Block, Needs, Step
from autoprune.steps.options import MixedOptions
from autoprune.steps.price import FLOAT, Price, Shape, layer_price


@dataclass(frozen=True)
class Mixed(MixedOptions, Step):
    """``W + share * W (C - G) (G + lambda I)^-1`` takes the dense weight's place for all later steps.

    ``G`` is the Gram of the pruned stream, ``C = X_dense X_pruned^T``: with share 1 the least-squares weight for
    ``W X_dense`` from the pruned inputs, which overfits. Experts keep their dense weights as target, for no expert
    sees the same tokens in both streams.
    """

    name: ClassVar[str] = "mixed"
    title: ClassVar[str] = "Mixed target"
    needs: ClassVar[Needs] = Needs(statistic=InputGram, also=(CrossGram,), dense_stream=True)

    def apply(self, block: Block) -> None:
        """Every layer of the block that sees the same tokens in both streams, before anything in it is pruned."""
        for group in block.observe(InputGram):
            if CrossGram not in group.statistics:
                continue  # experts
            gram, cross = group.statistics[InputGram], group.statistics[CrossGram]
            assert isinstance(gram, InputGram) and isinstance(cross, CrossGram)
            for layer in group.layers:
                weight = mixed_target(
                    layer.matrix.float(), cross.cross, gram.gram, share=self.mixed_share, damping=self.mixed_damping
                )
                block.retarget(layer, weight)

    def price(self, shape: Shape) -> Price:
        """Factorising is in double precision, and the targets stay beside the dense weights."""
        price = layer_price(shape, gram=True)
        work, stays = price.work + FLOAT * 2 * shape.gram, shape.block * shape.running
        return Price(work=work, stays=stays, new_weights=True, flops=2 * price.flops)
