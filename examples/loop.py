"""The idea of AutoPrune on one page: Wanda on a Hugging Face model that fits into memory.

A hollow forward pass tells what enters the first block and how every block is called. Then, block after block: observe
what enters its layers, choose which weights stay, set the others to zero, and run the block again, pruned, so that the
next one sees what it will see. Files, processes and memory are left out; `autoprune.prune` gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.core.selection import keep_for
from autoprune.core.sparsity import Target
from autoprune.core.statistics import InputNorm

Call = tuple[tuple[Any, ...], dict[str, Any]]  # a block's arguments besides the hidden states


@torch.no_grad()
def prune(model: nn.Module, blocks: Sequence[nn.Module], ids: Tensor, target: Target) -> None:
    """Prunes the linear layers of all blocks in place, calibrated on ``ids`` ``[samples, tokens]``, one at a time."""
    captured = [hollow(model, blocks, sample) for sample in ids.split(1)]
    hidden = [first for first, _ in captured]  # [1, tokens, width] for each sample
    for index, block in enumerate(blocks):
        calls = [called[index] for _, called in captured]
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        with observed(layers) as norms:
            run(block, hidden, calls)
        for layer, norm in zip(layers, norms, strict=True):
            score = layer.weight.abs() * norm.norm  # [out, in]
            layer.weight *= keep_for(score, target, per_row=True)
        hidden = run(block, hidden, calls)


def run(block: nn.Module, hidden: list[Tensor], calls: list[Call]) -> list[Tensor]:
    """The block's outputs."""
    return [block(x, *args, **named) for x, (args, named) in zip(hidden, calls, strict=True)]


@contextmanager
def observed(layers: Sequence[nn.Linear]) -> Iterator[list[InputNorm]]:
    """The norms ``[in]`` of what enters the layers while it lasts."""
    norms = [InputNorm.empty(layer.in_features, layer.weight.device) for layer in layers]

    def watch(norm: InputNorm) -> Callable[..., None]:
        return lambda _layer, args: norm.update(args[0].flatten(0, -2))

    handles = [layer.register_forward_pre_hook(watch(norm)) for layer, norm in zip(layers, norms, strict=True)]
    yield norms
    for handle in handles:
        handle.remove()


def hollow(model: nn.Module, blocks: Sequence[nn.Module], ids: Tensor) -> tuple[Tensor, list[Call]]:
    """Block 0's input, and how every block is called: a forward pass in which blocks hand on what they are given."""
    inputs: list[Tensor] = []
    calls: list[Call] = []

    def record(hidden: Tensor, *args: Any, **named: Any) -> Tensor:
        inputs.append(hidden)
        calls.append((args, named))
        return hidden

    for block in blocks:
        block.forward = record  # of this one object, before its class's
    model(input_ids=ids, use_cache=False)
    for block in blocks:
        del block.forward
    return inputs[0], calls
