"""The replay check: blocks called one by one must give, bit for bit, what the model's own forward pass gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.events import Emit, Phase, Work, silent
from autoprune.model.calls import hidden_of, replaced_forward
from autoprune.model.stream import Place
from autoprune.model.walk import Store, prepare_inputs, walk


@dataclass(frozen=True)
class Replay:
    """What the check found.

    ``block`` is the first one that differs (None: none does), ``difference`` the largest one seen.
    """

    block: str | None
    difference: float

    @property
    def exact(self) -> bool:
        """Whether no block differs in any bit."""
        return self.block is None


@torch.no_grad()
def replay_check(store: Store, ids: Int[Tensor, "samples tokens"], emit: Emit = silent) -> Replay:
    """Runs the model's own forward pass on one short batch, then block after block on it and on another one, as the
    loop does.

    The other batch runs last in every block: what a block leaves behind for a later one is then that batch's, and
    the later one gives another result than in the model's own pass. To see that, a block has to be run at two times,
    so every block is loaded twice. It is alone in memory each time: the check works on models larger than memory.
    """
    emit(Phase("replay check", total=2 * len(store.anatomy.blocks)))
    batch = max(1, len(ids) // 2)
    own = _own_outputs(store, ids[:batch], emit)
    inputs, stream = prepare_inputs(store, ids, batch, Place("device", store.device))
    found = Replay(None, 0.0)
    for block in walk(store):
        for i in range(len(stream)):
            stream[i] = inputs.calls.of(i, block.index)(block.module, stream[i])
        if (gap := _gap(own[block.index], stream[0])) is not None:
            found = Replay(found.block or block.name, max(found.difference, gap))
        _tick(store, emit, len(store.anatomy.blocks) + block.index + 1)
    return found


def _gap(a: Tensor, b: Tensor) -> float | None:
    """The largest difference; None where all bits are equal. NaN equals NaN: the observers name its layer."""
    if a.shape != b.shape:
        return float("inf")
    return None if bool(((a == b) | (a.isnan() & b.isnan())).all()) else float((a.float() - b.float()).abs().max())


def _own_outputs(store: Store, ids: Tensor, emit: Emit) -> dict[int, Tensor]:
    """By block: its output in the model's own forward pass, which walks from block to block as it calls them.

    Raises: ModelError if it calls them in another order than one after the other.
    """
    blocks = store.anatomy.blocks
    outputs: dict[int, Tensor] = {}
    walking = walk(store)

    def loading(index: int, own: Callable[..., object]) -> Callable[..., object]:
        def forward(*args: object, **kwargs: object) -> Any:
            reached = next(walking, None)
            if reached is None or reached.index != index:
                raise ModelError(
                    f"block {index} is called again or out of turn in one forward pass; autoprune needs every block to"
                    " be called once, in the order in which the model lists them"
                )
            result = own(*args, **kwargs)
            outputs[index] = hidden_of(result).clone()
            _tick(store, emit, len(outputs))
            return result

        return forward

    with replaced_forward([b.module for b in blocks], [loading(b.index, b.module.forward) for b in blocks]):
        store.embed(ids)
    walking.close()
    return outputs


def _tick(store: Store, emit: Emit, done: int) -> None:
    total = 2 * len(store.anatomy.blocks)
    emit(Work("replay check", done, total))


def require_replay(store: Store, ids: Int[Tensor, "samples tokens"], emit: Emit = silent) -> Replay:
    """The check's result. Raises: ModelError naming the first block whose replay is not exact."""
    found = replay_check(store, ids, emit)
    if not found.exact:
        raise ModelError(
            f"{found.block}: run alone, the block does not give what it gives inside"
            f" {type(store.anatomy.model).__name__} (largest difference {found.difference:g}), so statistics taken"
            " from it would be wrong; this model passes more between its blocks than hidden states. It can't be"
            " pruned; please report it"
        )
    return found
