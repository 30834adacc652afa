"""Perplexity by the papers' protocol: non-overlapping windows, mean token loss of each, mean over windows,
exponential.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from autoprune.data.windows import Windows
from autoprune.errors import NumericsError
from autoprune.events import Emit, Phase, Progress, Work
from autoprune.model.calls import ending_in
from autoprune.model.stream import Place
from autoprune.model.walk import Store, prepare_inputs, walk
from autoprune.results.types import PerplexityResult


def perplexity(
    store: Store, windows: Windows, source: str, *, batch: int, place: Place, emit: Emit
) -> PerplexityResult:
    """Perplexity of the model on token windows ``[samples, seqlen]``.

    The model predicts ``seqlen - 1`` tokens of each window. A model larger than memory is run block by block
    over all windows; the numbers are the same.
    Raises: NumericsError if a loss is NaN or infinite.
    """
    count, seqlen = windows.ids.shape
    losses: list[Tensor] = []
    emit(Phase(f"perplexity {source}", total=-(-count // batch)))
    run = _resident_logits if store.resident else streamed_logits
    for part, logits in run(store, windows.ids, batch, place, emit):
        losses.append(window_losses(logits, part.to(logits.device)).cpu())
        emit(Work(f"perplexity {source}", len(losses), -(-count // batch)))
    mean = float(torch.cat(losses).double().mean())
    if not math.isfinite(mean):
        raise NumericsError(
            f"the loss on {source} is {mean}: the model's activations overflow or its weights are damaged; try --dtype"
            " float32"
        )
    return PerplexityResult(
        source, math.exp(min(mean, 700.0)), seqlen, count, count * seqlen, _with_bits_per_byte(windows, mean)
    )


@torch.no_grad()
def window_losses(
    logits: Float[Tensor, "samples tokens vocab"], ids: Int[Tensor, "samples tokens"]
) -> Float[Tensor, " samples"]:
    """Mean loss in nats over the predicted tokens of each window."""
    losses = [
        functional.cross_entropy(line[:-1].float(), target[1:]) for line, target in zip(logits, ids, strict=True)
    ]
    return torch.stack(losses)


def _with_bits_per_byte(windows: Windows, mean: float) -> dict[str, Any]:
    size = windows.provenance.get("utf8_bytes")
    predicted = windows.ids.shape[0] * (windows.ids.shape[1] - 1)
    return windows.provenance | {
        "loss": mean,
        "bits_per_byte": mean * predicted / math.log(2) / size if size else None,
    }


@torch.no_grad()
def _resident_logits(
    store: Store, ids: Tensor, batch: int, place: Place, emit: Emit
) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in walk(store):
        pass  # a resident store keeps what it has loaded
    for part in ids.split(batch):
        yield part, store.logits(part)


@torch.no_grad()
def streamed_logits(
    store: Store, ids: Tensor, batch: int, place: Place, emit: Emit
) -> Iterator[tuple[Tensor, Tensor]]:
    inputs, stream = prepare_inputs(store, ids, batch, place)
    blocks = store.anatomy.blocks
    for block in walk(store):
        for i in range(len(stream)):
            stream[i] = inputs.calls.of(i, block.index)(block.module, stream[i])
            emit(Progress(block.index, len(blocks), "forward", i + 1, len(stream)))
    modules = [block.module for block in blocks]
    for i, part in enumerate(ids.split(batch)):
        with ending_in(modules, inputs.mirror, stream[i]):
            yield part, store.logits(part)
