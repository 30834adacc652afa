"""Whether a block of a smaller model is a certain block of the larger one: the same parts, computing the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.model.anatomy import Anatomy
from autoprune.model.calls import PROBE_TOKENS, Mirror, capture, replaced_forward
from autoprune.model.stream import Place
from autoprune.model.walk import Store, prepare_inputs, walk

_PLAIN = (bool, int, float, str, type(None))


def check_kinds(large: Anatomy, small: Anatomy, kept: Sequence[int]) -> None:
    """Raises: ModelError naming the first block of the smaller model that would be of another kind, and how."""
    for new, old in enumerate(kept):
        was, becomes = dict(_facts(large.blocks[old].module, old)), dict(_facts(small.blocks[new].module, new))
        differing = [name for name in {**was, **becomes} if was.get(name) != becomes.get(name)]
        if differing:
            what = differing[0]
            raise ModelError(
                f"block {old} would become block {new}, which this model makes of another kind by its number ({what}:"
                f" {was.get(what, 'none')}, then {becomes.get(what, 'none')}); its configuration has no list of kinds"
                " to say otherwise, so only blocks can go that leave this order as it is, such as the last ones"
            )


def _facts(block: nn.Module, number: int) -> Iterator[tuple[str, object]]:
    """Classes, shapes and plain settings of all parts of a block; its own number counts for none."""
    for name, module in block.named_modules():
        yield name or "the block", type(module).__name__
        for key, value in vars(module).items():
            own = type(value) is int and value == number and _is_number(key)
            if isinstance(value, _PLAIN) and not key.startswith("_") and not own:
                yield f"{name}.{key}", value
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        yield f"{name} (shape)", tuple(tensor.shape)


def _is_number(key: str) -> bool:
    """Whether an attribute may hold the block's own number."""
    return any(word in key for word in ("layer", "idx", "index", "block", "number"))


@torch.no_grad()
def check_same_function(large: Store, small: Store, kept: Sequence[int], ids: Int[Tensor, "samples tokens"]) -> None:
    """Runs the smaller model's blocks and those of the larger one that they are on a few tokens, one after the other.

    Raises: ModelError naming the first block that does not give the same bits, or another one behind the gap; or if
    the smaller model can't keep a cache, and the larger one can.
    """
    few = ids[:1, :PROBE_TOKENS]
    inputs, stream = prepare_inputs(large, few, 1, Place("device", large.device))
    modules = [block.module for block in small.anatomy.blocks]
    hidden, calls = capture(small.embed, modules, inputs.mirror, few)
    same = torch.equal(hidden, stream[0])
    for new, old in enumerate(kept):
        for block in walk(large, start=old, stop=old + 1):
            expected = inputs.calls.of(0, old)(block.module, hidden)
        for block in walk(small, start=new, stop=new + 1):
            hidden = calls[new](block.module, hidden)
        if not same or not torch.equal(hidden, expected):
            raise ModelError(
                f"block {old} as block {new} of the smaller model does not give what it gave: it computes with its own"
                " number or with other blocks, so this model's blocks can't be made fewer"
            )
    if (trouble := _with_cache(small, inputs.mirror, few)) and not _with_cache(large, inputs.mirror, few):
        raise ModelError(
            f"with the blocks {', '.join(map(str, kept))} alone the model can't generate with a cache ({trouble}): a"
            " kind of block that it needs would be gone; drop fewer blocks, or others with --by"
        )


def _with_cache(store: Store, mirror: Mirror, ids: Int[Tensor, "samples tokens"]) -> str | None:
    """Runs the model with a cache, its blocks hollow: what it says if it can't; None if it can."""
    model: Any = store.anatomy.model
    modules = [block.module for block in store.anatomy.blocks]

    def echo(*args: Any, **kwargs: Any) -> object:
        return mirror.wrap(args[0] if args else kwargs["hidden_states"])

    try:
        with replaced_forward(modules, [echo] * len(modules)):
            getattr(model, "base_model", model)(input_ids=ids.to(store.device), use_cache=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the model's own code does
        return f"{type(error).__name__}: {error}"
    return None
