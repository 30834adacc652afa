"""A block as it is stored, with what became of its layers in it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autoprune.core.problem import LayerSolution
from autoprune.model.anatomy import BlockAnatomy
from autoprune.storage.skeleton import Skeleton


def apply_solutions(
    skeleton: Skeleton,
    block: BlockAnatomy,
    stored: Mapping[str, Tensor],
    solutions: Mapping[str, LayerSolution],
    others: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """A block's stored tensors with the pruned layers in them; every other tensor is handed on untouched.

    Patterns and new weights are laid out as the model's parameters and then converted to the checkpoint's names and
    layout, so that survivors of methods that do not change weights keep their stored bits, whatever precision and
    layout the blocks ran in.
    """
    dtypes, keep = skeleton.stored_as(block.name), dict[str, Tensor]()
    weights: dict[str, Tensor] = {}
    for layer in block.layers:
        solution = solutions.get(layer.name)
        if solution is None:
            continue
        name = f"{block.name}.{layer.parameter_name}"
        layer.of(keep.setdefault(name, torch.ones(layer.parameter.shape, dtype=torch.bool))).copy_(solution.keep)
        if solution.weight is not None:
            whole = weights.setdefault(name, layer.parameter.data.to("cpu", dtypes[layer.parameter_name], copy=True))
            layer.of(whole).copy_(solution.weight)
    result = dict(stored)
    for name, value in skeleton.as_stored({f"{block.name}.{name}": v for name, v in others.items()}, stored).items():
        result[name] = value.to(stored[name].dtype).contiguous()
    changed = skeleton.as_stored(weights, stored)
    for name, pattern in skeleton.as_stored(keep, stored).items():
        old = stored[name]
        result[name] = changed.get(name, old).to(old.dtype).masked_fill(~pattern, 0.0).contiguous()
    return result
