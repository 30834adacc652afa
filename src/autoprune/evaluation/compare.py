"""How far pruned models' predictions are from the dense model's on a text; no logits are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from autoprune.core.divergence import TokenShifts, first_scored, summarise, token_shifts
from autoprune.core.shift import PredictionShift
from autoprune.data.windows import Windows
from autoprune.errors import NumericsError
from autoprune.events import Emit, Phase, Progress, Work
from autoprune.model.calls import Mirror, ending_in, hidden_of, probe_mirror, replaced_forward
from autoprune.model.stream import Place
from autoprune.model.walk import Store, prepare_inputs, walk

LOGITS = 2**23  # numbers of one model's logits that are there at a time


@dataclass(frozen=True)
class _Ends:
    """A model behind its last block: hidden states ``[samples, tokens, width]`` of scored tokens, by micro-batch."""

    store: Store
    mirror: Mirror
    hidden: Callable[[int], Tensor]

    def logits(
        self, hidden: Float[Tensor, "samples tokens width"], ids: Int[Tensor, "samples tokens"]
    ) -> Float[Tensor, "all_tokens vocab"]:
        """What the model's own code behind the blocks (norm, head) makes of some of them, each token by itself."""
        with ending_in([block.module for block in self.store.anatomy.blocks], self.mirror, hidden):
            return self.store.logits(ids).flatten(0, 1)


@torch.no_grad()
def compare_predictions(
    dense: Store,
    pruned: Mapping[str, Store],
    windows: Windows,
    source: str,
    *,
    batch: int,
    place: Place,
    emit: Emit,
) -> dict[str, PredictionShift]:
    """Every pruned model against the dense one, on the second half of each window ``[samples, seqlen]``.

    One model after the other goes through its blocks (those that are not in memory are loaded one by one), then all
    go through their heads together, some tokens at a time. The dense model's share is done once. All have one
    vocabulary. Raises: NumericsError naming window and model if logits are NaN or infinite; DataError for windows of
    less than 2 tokens.
    """
    count, seqlen = windows.ids.shape
    scored = slice(first_scored(seqlen), seqlen - 1)
    names = ("the dense model", *pruned)
    ends = [
        (_resident if store.resident else _streamed)(store, windows.ids, batch, place, scored, name, emit)
        for name, store in zip(names, (dense, *pruned.values()), strict=True)
    ]
    parts = windows.ids.split(batch)
    emit(Phase(f"comparison {source}", total=len(parts)))
    found: list[list[TokenShifts]] = []
    for i, part in enumerate(parts):
        shifts = _score(ends, i, part.to(dense.device), scored)
        _check_finite(shifts, list(pruned), f"of {count} of {source}", i * batch)
        found.append(shifts)
        emit(Work(f"comparison {source}", i + 1, len(parts)))
    return {
        name: summarise(TokenShifts.joined(of), seqlen)
        for name, of in zip(pruned, zip(*found, strict=True), strict=True)
    }


def _score(ends: list[_Ends], index: int, ids: Int[Tensor, "samples seqlen"], scored: slice) -> list[TokenShifts]:
    """By pruned model, the shifts ``[samples, tokens]`` of one micro-batch."""
    given, following = ids[:, scored], ids[:, scored.start + 1 :]
    hidden = [end.hidden(index) for end in ends]
    vocabulary = ends[0].store.anatomy.model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    at_once = max(1, LOGITS // (vocabulary * len(ids)))
    found = []
    for at in range(0, given.shape[1], at_once):
        some = slice(at, at + at_once)
        dense, *pruned = (end.logits(own[:, some], given[:, some]) for end, own in zip(ends, hidden, strict=True))
        found.append([shift.view(len(ids), -1) for shift in token_shifts(dense, pruned, following[:, some].flatten())])
    return [TokenShifts.joined(parts, 1) for parts in zip(*found, strict=True)]


def _check_finite(shifts: list[TokenShifts], names: list[str], where: str, before: int) -> None:
    """``before``: windows before those that are judged."""
    for name, shift in zip(names, shifts, strict=True):
        for who, values in (
            ("the dense model", shift.dense_loss),
            (name, shift.pruned_loss),
            (f"{name} against the dense model", shift.kld),
        ):
            if not bool(torch.isfinite(values).all()):
                window = before + int(torch.isfinite(values).all(1).int().argmin()) + 1
                raise NumericsError(
                    f"window {window} {where}: the predictions of {who} are not finite; its"
                    " activations overflow or its weights are damaged; "
                    "try --dtype float32"
                )


def _resident(store: Store, ids: Tensor, batch: int, place: Place, scored: slice, name: str, emit: Emit) -> _Ends:
    """A model in memory runs when its hidden states are asked for: none are kept."""
    modules = [block.module for block in store.anatomy.blocks]
    for _ in walk(store):
        pass  # a resident store keeps what it has loaded
    mirror, parts, last = probe_mirror(store.embed, modules, ids), ids.split(batch), modules[-1].forward

    def hidden(index: int) -> Tensor:
        seen: list[Tensor] = []

        def watched(*args: Any, **kwargs: Any) -> Any:
            output = last(*args, **kwargs)
            seen.append(hidden_of(output))
            return output

        with replaced_forward(modules[-1:], [watched]):
            store.embed(parts[index])
        return seen[0][:, scored]

    return _Ends(store, mirror, hidden)


def _streamed(store: Store, ids: Tensor, batch: int, place: Place, scored: slice, name: str, emit: Emit) -> _Ends:
    """All windows through one block after the other; behind the last one only the scored tokens are kept."""
    blocks = store.anatomy.blocks
    emit(Phase(f"forward {name}", total=len(blocks)))
    inputs, stream = prepare_inputs(store, ids, batch, place)
    kept = inputs.new_stream()
    for block in walk(store):
        for i in range(len(stream)):
            output = inputs.calls.of(i, block.index)(block.module, stream[i])
            if block is blocks[-1]:
                kept[i] = output[:, scored]
            else:
                stream[i] = output
            emit(Progress(block.index, len(blocks), f"forward {name}", i + 1, len(stream)))
    return _Ends(store, inputs.mirror, kept.__getitem__)
