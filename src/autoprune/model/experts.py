"""Mixtures of experts, found by what transformers says of them: fused parameters, their orientation, and their
routers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from autoprune.model.layers import Expert, is_linear, join

# What transformers calls the parts that choose tokens for sparse attention, and that mix residual streams. Zeros there
# change what is computed from, as in a router, and weigh little: some per cent of a block.
DECIDING = ("indexer", "hyper_connection")


def fused_experts(owner: str, module: nn.Module) -> list[Expert]:
    """The experts whose weights this module itself holds, as ``[out, in]`` layers.

    A fused parameter has three dimensions, the first of which is a number of experts that the module states.
    """
    counts = {
        value
        for key, value in vars(module).items()
        if "expert" in key and isinstance(value, int) and not isinstance(value, bool)
    }
    fused = {name: p for name, p in module.named_parameters(recurse=False) if p.dim() == 3 and p.shape[0] in counts}
    transposed = _is_transposed(module, list(fused.values()))
    return [
        Expert(join(owner, str(index), name), module, owner, name, index, transposed)
        for index in range(max((p.shape[0] for p in fused.values()), default=0))
        for name, p in fused.items()
        if index < p.shape[0]
    ]


def _is_transposed(module: nn.Module, fused: list[Tensor]) -> bool:
    """Whether the parameters are ``[experts, in, out]``; what is found here is checked again when the weights are
    used.

    Most modules of transformers say so. Else the first map must take what the last one gives: the hidden width.
    """
    stated = getattr(module, "is_transposed", None)
    if isinstance(stated, bool) or len(fused) < 2:
        return bool(stated)
    first, last = fused[0].shape, fused[-1].shape
    return first[2] != last[1] and first[1] == last[2]


def routers(block: nn.Module) -> set[int]:
    """Identities of the linear maps in a block that decide where tokens go, or how much of something is let through.

    They have one output, or as many outputs as there are experts beside them, or lie in a part that chooses which
    tokens attention sees or mixes several residual streams.
    """
    found = {id(module) for module in block.modules() if is_linear(module) and _width(module) == 1}
    for name, part in block.named_modules():
        if name.endswith(DECIDING):
            found |= {id(module) for module in part.modules() if is_linear(module)}
    for parent in block.modules():
        for child in parent.children():
            if count := _experts_in(child):
                inside = {id(module) for module in child.modules()}
                found |= {
                    id(m) for m in parent.modules() if is_linear(m) and id(m) not in inside and _width(m) == count
                }
    return found


def sent_to(block: nn.Module) -> set[int]:
    """Identities of the linear maps of a block that see only the tokens that are sent to them, for they lie in a list
    of experts."""
    lists = (part for part in block.modules() if isinstance(part, nn.ModuleList) and _experts_in(part))
    return {id(module) for part in lists for module in part.modules() if is_linear(module)}


def _experts_in(module: nn.Module) -> int:
    """Number of experts that a module holds, fused or as a list of modules; 0 if none."""
    if isinstance(module, nn.ModuleList):
        holding = [child for child in module if any(is_linear(part) for part in child.modules())]
        return len(module) if len(holding) == len(module) > 1 else 0
    return max((expert.index + 1 for expert in fused_experts("", module)), default=0)


def _width(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0) or getattr(module, "nf", 0))


@contextlib.contextmanager
def eager_experts(model: nn.Module) -> Iterator[None]:
    """While it lasts, experts are computed one after the other, so that every one's product can be seen.

    Otherwise transformers may gather or group the weights of all experts into one product.
    """
    snapshot = getattr(model, "get_experts_implementation", None)
    if snapshot is None:
        yield
        return
    before = snapshot()
    try:
        model.set_experts_implementation("eager")  # type: ignore[operator]
        yield
    finally:
        model.set_experts_implementation(before)  # type: ignore[operator]
