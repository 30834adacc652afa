"""What a step costs: memory and arithmetic by the counts of a model. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = 4  # bytes: statistics and solving are in float32


@dataclass(frozen=True)
class Shape:
    """What a price depends on: counts of weights, widths, and how many bytes one number takes."""

    width: int  # of the hidden states
    widest: int  # largest input or output of a layer
    outside: int  # parameters outside the blocks that calibration needs
    head: int  # parameters that only evaluation needs besides: the head's, where they are not the embedding's
    vocabulary: int
    block: int  # parameters of the largest block
    sub_block: int  # weights of the largest sub-block
    sub_blocks: int  # how many a block has
    layer: int  # weights of the largest layer
    gram: int  # numbers in the largest layer's Gram
    grams: int  # numbers in the Grams of all input groups of a block
    stored: int  # bytes of one stored weight
    running: int  # bytes of one number in the forward passes
    copies: int  # 1: blocks run on weights as stored, 2: cast or moved first, 3: (experts) fused and then overwritten
    heads: int  # of attention, where its scores are laid out in full; else 0
    batch: int = 1  # windows per forward pass
    samples: int = 0  # windows of calibration
    tokens: int = 1  # of each
    parameters: int = 0  # of all blocks
    squares: int = 0  # numbers in the Grams of all layers of all blocks
    sweeps: int = 0  # weights times inputs, summed over all layers
    blocks: int = 1  # how many the model has

    def forward(self, dtype_bytes: int) -> int:
        """Bytes of the activations that are kept for a backward pass through a sub-block, or both."""
        inside = (12 * self.width + 6 * self.widest) * dtype_bytes + 3 * self.heads * self.tokens * FLOAT
        return self.batch * self.tokens * inside


@dataclass(frozen=True)
class Price:
    """What a step adds to a run that only walks over the blocks."""

    work: int = 0  # bytes beside the block's weights and the statistics of its pass, at the peak
    stays: int = 0  # bytes that stay until the block is written
    new_weights: bool = False  # whether it makes weights that wait beside the old ones until the block is written
    outputs: int = 0  # hidden states of all samples that are kept beside the streams, while a block is worked on
    streams: int = 0  # further streams of hidden states
    whole: int = 0  # bytes of work on the whole model after the walk, beside the model's ends
    forwards: float = 0.0  # of all samples through all blocks, beside observing, the dense stream and going on
    flops: float = 0.0  # floating-point operations besides


def layer_price(shape: Shape, *, gram: bool) -> Price:
    """A step that treats layers by what enters them: the largest one in float32 with scores and what choosing needs.

    With Grams: the more of what factorising the largest one needs, and its factor with two layers that are solved
    together.
    """
    if not gram:
        return Price(work=shape.layer * FLOAT * 5)
    work = FLOAT * max(3 * shape.gram, shape.gram + 6 * shape.layer)
    flops = 2.0 * shape.samples * shape.tokens * shape.squares + 2.0 * shape.sweeps
    return Price(work=work, new_weights=True, flops=flops)
