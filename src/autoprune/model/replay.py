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
    """Runs the model's own forward pass on a short batch, and beside it every block on the recorded call arguments.

    One block's weights are loaded at a time, so that it works on models larger than memory.
    """
    inputs, stream = prepare_inputs(store, ids, ids.shape[0], Place("device", store.device))
    hidden, found = stream[0], Replay(None, 0.0)
    blocks = store.anatomy.blocks

    def both(index: int, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal hidden, found
            store.load(index)
            output = own(*args, **kwargs)
            hidden = inputs.calls.of(0, index)(own, hidden)
            store.release(index)
            if not torch.equal(hidden_of(output), hidden):
                gap = float((hidden_of(output).float() - hidden.float()).abs().max())
                found = Replay(found.block or blocks[index].name, max(found.difference, gap))
            return output

        return forward

    with replaced_forward([b.module for b in blocks], [both(b.index, b.module.forward) for b in blocks]):
        store.embed(ids)
    return found


def require_replay(store: Store, ids: Int[Tensor, "samples tokens"]) -> Replay:
    """The check's result. Raises: ModelError naming the first block whose replay is not exact."""
    found = replay_check(store, ids)
    if not found.exact:
        raise ModelError(
            f"{found.block}: run alone, the block does not give what it gives inside {type(store.anatomy.model).__name__} (largest difference "
            f"{found.difference:g}), so statistics taken from it would be wrong; this model passes more between its blocks than hidden states. Please report it"
        )
    return found
