"""The replay check: blocks called one by one must give, bit for bit, what the model's own forward pass gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.model.activations import hidden_of, replaced_forward
from autoprune.model.pipeline import Store, prepare_inputs
from autoprune.model.stream import Place


@dataclass(frozen=True)
class Replay:
    """What the check found. ``block`` is the first one that differs (None: none does), ``difference`` the largest one seen."""

    block: str | None
    difference: float

    @property
    def exact(self) -> bool:
        """Whether no block differs in any bit."""
        return self.block is None


@torch.no_grad()
def replay_check(store: Store, ids: Int[Tensor, "samples tokens"]) -> Replay:
    """Runs the model's own forward pass on two short batches, then block after block on both, as the loop does.

    Two batches, because a block that leaves something behind for a later one would leave that of the last batch.
    One block's weights are in memory at a time, so that it works on models larger than memory.
    """
    batch = max(1, len(ids) // 2)
    own = [_own_outputs(store, part) for part in ids.split(batch)]
    inputs, stream = prepare_inputs(store, ids, batch, Place("device", store.device))
    found = Replay(None, 0.0)
    for block in store.anatomy.blocks:
        store.load(block.index)
        for i in range(len(stream)):
            stream[i] = inputs.calls.of(i, block.index)(block.module, stream[i])
            expected = own[i][block.index]
            if not _same(expected, stream[i]):
                gap = float((expected.float() - stream[i].float()).abs().max())
                found = Replay(found.block or block.name, max(found.difference, gap))
        store.release(block.index)
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal in every number; NaN equals NaN, for that is another trouble, which the observers name by its layer."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _own_outputs(store: Store, ids: Tensor) -> list[Tensor]:
    """Every block's output in the model's own forward pass, each block's weights loaded when it is called."""
    blocks = store.anatomy.blocks
    outputs: list[Tensor] = []

    def loading(index: int, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            store.load(index)
            result = own(*args, **kwargs)
            store.release(index)
            outputs.append(hidden_of(result).clone())
            return result

        return forward

    with replaced_forward([b.module for b in blocks], [loading(b.index, b.module.forward) for b in blocks]):
        store.embed(ids)
    return outputs


def require_replay(store: Store, ids: Int[Tensor, "samples tokens"]) -> Replay:
    """The check's result. Raises: ModelError naming the first block whose replay is not exact."""
    found = replay_check(store, ids)
    if not found.exact:
        raise ModelError(
            f"{found.block}: run alone, the block does not give what it gives inside {type(store.anatomy.model).__name__} "
            f"(largest difference {found.difference:g}), so statistics taken from it would be wrong; this model passes more "
            "between its blocks than hidden states. It can't be pruned; please report it"
        )
    return found
