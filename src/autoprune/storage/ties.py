"""Weights that are one tensor under several names, such as head and embedding: tied as ``from_pretrained`` does it,
which depends on what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autoprune.storage.checkpoint import Checkpoint


def settle_ties(model: PreTrainedModel, checkpoint: Checkpoint, owners: Mapping[str, str], dtype: torch.dtype) -> None:
    """Decides for every pair that config.json ties: stored once, under either name, it stays tied, to what is stored;
    stored twice with different values it is not one tensor, whatever config.json says, and each gets its own.

    ``owners`` maps stored tensors to parameters; values are compared in ``dtype``, in which the model runs.
    """
    stored = {owner: name for name, owner in owners.items()}
    pairs = dict(model.all_tied_weights_keys)
    for root in dict.fromkeys(pairs.values()):
        members = [root, *(target for target, source in pairs.items() if source == root)]
        first = next((name for name in members if name in stored), root)
        for name in members:
            pairs.pop(name, None)
            if name == first:
                continue
            if name not in stored or _equal(checkpoint, stored[name], stored[first], dtype):
                pairs[name] = first
            else:
                _set(model, name, nn.Parameter(torch.empty_like(model.get_parameter(name)), requires_grad=False))
    if model.all_tied_weights_keys and not pairs:
        for config in (model.config, model.config.get_text_config()):  # whoever ties this model again asks there
            config.tie_word_embeddings = False
    model.all_tied_weights_keys = pairs
    tie(model)


def tie(model: PreTrainedModel) -> None:
    """Lets tied parameters be the one that was filled."""
    for name, source in model.all_tied_weights_keys.items():
        held = model.get_parameter_or_buffer(source)
        _set(model, name, held)
        model._adjust_bias(model.get_submodule(name.rpartition(".")[0]), held)


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, value)


def _equal(checkpoint: Checkpoint, name: str, other: str, dtype: torch.dtype) -> bool:
    shapes = checkpoint.shapes()
    if shapes[name] != shapes[other]:
        return False
    one, two = (checkpoint.read([stored])[stored].to(dtype) for stored in (name, other))
    return torch.equal(one, two)
