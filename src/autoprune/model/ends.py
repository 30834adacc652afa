"""What stands before the first block and behind the last one, and whether a rotation passes through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.model.calls import Mirror, ending_in
from autoprune.model.fold import Ends, Norm
from autoprune.model.turning import TOLERANCE, neutral_weight, noise, refusal, rows_of
from autoprune.model.walk import Store


def find_ends(store: Store, mirror: Mirror, ids: Tensor, like: Tensor) -> Ends:
    """What becomes of hidden states behind the last block. Raises: ModelError if that is not norm, then head."""
    model: Any = store.anatomy.model
    final = noise(7, tuple(like.shape), like.device).to(like.dtype)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def look(_module: nn.Module, args: tuple[object, ...], output: object) -> None:
            if (
                args
                and isinstance(args[0], Tensor)
                and args[0].shape[-1] == final.shape[-1]
                and isinstance(output, Tensor)
            ):
                seen[name] = (args[0], output)

        return look

    blocks = [block.module for block in store.anatomy.blocks]
    inside = {id(module) for block in blocks for module in block.modules()}
    parts = {name: m for name, m in model.named_modules() if id(m) not in inside and not list(m.children())}
    handles = [module.register_forward_hook(hook(name)) for name, module in parts.items()]
    try:
        with ending_in(blocks, mirror, final):
            store.logits(ids)
    finally:
        for handle in handles:
            handle.remove()
    head = model.get_output_embeddings()
    norms = [
        name for name, (x, y) in seen.items() if x.shape == y.shape and torch.equal(x, final) and not torch.equal(x, y)
    ]
    heads = [x.double() for name, (x, _) in seen.items() if parts[name] is head]
    if len(norms) != 1 or not heads or not rows_of(heads[0], seen[norms[0]][1].double()):
        raise refusal("between its last block and its head stands something else than one norm")
    neutral = neutral_weight(parts[norms[0]], norms[0], like)
    return Ends(Norm(norms[0], neutral), head.weight is model.get_input_embeddings().weight)


def check_embedding(model: Any, hidden: Tensor, ids: Tensor) -> None:
    """Raises: ModelError unless what enters the first block is a multiple of the tokens' embeddings."""
    embedded = model.get_input_embeddings().weight[ids.to(hidden.device)].double()
    tolerance = max(TOLERANCE, 4 * torch.finfo(hidden.dtype).eps)
    if embedded.shape == hidden.shape:
        factor = (hidden.double() * embedded).sum() / embedded.square().sum()
        if bool((hidden.double() - factor * embedded).norm() <= tolerance * hidden.double().norm()):
            return
    raise refusal("what enters its first block is not the embedding of the tokens, or a multiple of it")


def notices(model: Any, ends: Ends) -> tuple[str, ...]:
    """What the user should know of the fold."""
    if not ends.tied:
        return ()
    weight = model.get_input_embeddings().weight
    size = weight.numel() * weight.element_size() / 2**20
    return (
        "embedding and head were one matrix and are two from now on, because the last norm's weight goes into "
        f"the head: the model grows by {size:,.1f} MiB",
    )
