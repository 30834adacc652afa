"""What docs/architectures.md says of one model's structure."""

from __future__ import annotations

import re

import torch

from autoprune.model.anatomy import Anatomy
from autoprune.storage.store import CheckpointStore

Row = dict[str, str]


def structure(anatomy: Anatomy) -> Row:
    """The columns that the anatomy alone tells."""
    counts = [len(block.layers) for block in anatomy.blocks]
    dense = [
        name
        for block in anatomy.blocks
        for name, _ in block.unreached
        if _is_matrix(block.module.get_parameter(name), name)
    ]
    return {
        "class": type(anatomy.model).__name__,
        "blocks": f"`{anatomy.name}`",
        "layers in a block": " or ".join(str(count) for count in sorted(set(counts))),
        "coverage": f"{anatomy.coverage:.1%}",
        "stays dense": (
            ", ".join(f"`{name}`" for name in dict.fromkeys(_without_weight(name) for name in dense)) or "–"
        ),
    }


def beside(store: CheckpointStore) -> str:
    """What of a model with more than a language model is left alone, without its tiny sizes."""
    return ", ".join(f"`{re.sub(r' [(].*', '', part)}`" for part in store.left_alone)


def _is_matrix(parameter: torch.Tensor, name: str) -> bool:
    return parameter.dim() > 1 and "norm" not in name and not name.endswith("bias")


def _without_weight(name: str) -> str:
    return name.removesuffix(".weight")
