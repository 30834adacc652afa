"""What the tests of mixtures of experts share."""

from __future__ import annotations

import torch
from configs import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.layers import Expert


def experts_of(block: BlockAnatomy) -> list[Expert]:
    return [layer for layer in block.layers if isinstance(layer, Expert)]


def inputs_of(model: PreTrainedModel, block: BlockAnatomy, child: str, ids: Tensor) -> Tensor:
    """What enters the part of a block that holds the experts."""
    caught: list[Tensor] = []
    handle = getattr(block.module, child).register_forward_pre_hook(lambda _, args: caught.append(args[0].detach()))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    handle.remove()
    return caught[0]


def lonely_expert() -> PreTrainedModel:
    """A model whose expert 3 never gets a token."""
    model = tiny_model("gpt_oss")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.router.bias[3] = -1e6
    return model
