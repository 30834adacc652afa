"""Scales what a block adds to the hidden states; knows no family.

Where blocks went, hidden states are smaller than what the blocks behind the gap are used to: alpha times, by their
mean size in the dense model (arXiv 2507.18212, which scales what stands in front of the gap). Blocks that read hidden
states through norms don't see a common factor. So what those behind the gap add is divided by alpha instead: the same
model up to that factor, which leaves embeddings and head alone, and which the last norm takes away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.layers import Expert, Layer
from autoprune.model.watch import Use, Watch

Run = Callable[[Tensor], Tensor]  # hidden states -> the block's output
ALONG = 0.5  # of what is added on top of a layer's output, the share that must arrive for it to be one that adds


@torch.no_grad()
def adding_layers(block: BlockAnatomy, run: Run, hidden: Float[Tensor, "samples tokens width"]) -> list[Layer]:
    """The layers whose output is added to the hidden states: noise on top of it arrives behind the block."""
    clean, found = run(hidden), list[Layer]()
    for layer in (layer for layer in block.layers if layer.shape[0] == hidden.shape[-1]):
        if isinstance(layer, Expert):  # as wide as the hidden states it can do nothing else
            found.append(layer)
            continue
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean) * clean.std()

        def disturbed(_: list[Use], result: Tensor, noise: Tensor = noise) -> Tensor:
            return result + noise.reshape(result.shape) if result.numel() == noise.numel() else result

        with Watch([layer], disturbed):
            change = (run(hidden) - clean).float()
        if float((change * noise.float()).sum() / noise.float().square().sum()) > ALONG:
            found.append(layer)
    return found


@torch.no_grad()
def rescaled(
    block: BlockAnatomy, run: Run, hidden: Float[Tensor, "samples tokens width"], factor: float, tolerance: float
) -> dict[str, Tensor] | None:
    """The parameters of the block that change if it adds ``factor`` times as much, by name; it holds them afterwards.

    None if the block then gives anything else than ``factor`` times what it gave for hidden states as much smaller.
    """
    expected = run(hidden / factor).float() * factor
    names = dict[str, None]()
    own = {name for name, _ in block.module.named_parameters()}
    for layer in adding_layers(block, run, hidden):
        bias = f"{layer.parameter_name}_bias" if isinstance(layer, Expert) else f"{layer.name}.bias"
        names |= dict.fromkeys(name for name in (layer.parameter_name, bias) if name in own)
    for name in names:
        parameter = block.module.get_parameter(name)
        parameter.data = parameter.data * factor
    gap = float((run(hidden).float() - expected).norm() / expected.norm())
    return {name: block.module.get_parameter(name).data for name in names} if gap < tolerance else None


def factors(sizes: list[float], kept: list[int]) -> Iterator[float]:
    """For every block that stays: what it adds is to be taken so many times.

    ``sizes``: the mean size of hidden states in front of every block of the dense model, and behind the last.
    """
    factor, reached = 1.0, 0
    for block in kept:
        factor *= sizes[reached] / sizes[block]
        reached = block + 1
        yield factor
