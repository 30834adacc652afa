"""The hidden-state stream, and how every block is called: found by one hollow forward pass."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from autoprune.errors import ModelError

PROBE_TOKENS = 8
_PLAIN = (bool, int, float, str, bytes, tuple, torch.dtype, torch.device)


@dataclass(frozen=True)
class BlockCall:
    """What a block is given besides the hidden states (attention mask, position embeddings, …)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_keyword: str | None  # the hidden states' keyword, or None if they come first by position
    dtype: torch.dtype  # of the hidden states that these arguments were made for

    def __call__(
        self, block: nn.Module, hidden: Float[Tensor, "samples tokens ..."]
    ) -> Float[Tensor, "samples tokens ..."]:
        """Runs the block and returns its hidden states."""
        call = self.cast(hidden.dtype)
        named = {call.by_keyword: hidden} if call.by_keyword else {}
        placed = () if call.by_keyword else (hidden,)
        return hidden_of(block(*placed, *call.args, **named, **call.kwargs))

    def cast(self, dtype: torch.dtype) -> BlockCall:
        """The same call for hidden states of another precision: tensors that had theirs go with them, others stay as
        they are.

        What blocks leave in an argument for later ones (keys and values) stays behind in the copy.
        """
        if dtype == self.dtype:
            return self

        def change(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.dtype == self.dtype else tensor

        return BlockCall(map_tensors(self.args, change), map_tensors(self.kwargs, change), self.by_keyword, dtype)

    def same_as(self, other: BlockCall) -> bool:
        """Whether all arguments are equal, so that one copy is enough."""
        mine, others = list(leaves((self.args, self.kwargs))), list(leaves((other.args, other.kwargs)))
        same_form = self.dtype == other.dtype and len(mine) == len(others)
        return same_form and all(_equal(a, b) for a, b in zip(mine, others, strict=True))


@dataclass(frozen=True)
class Mirror:
    """How a block or part returns its hidden states, of which width: alone, or first in a tuple or a list."""

    rest: tuple[Any, ...] | None
    container: type = tuple
    width: int = 0

    def wrap(self, hidden: Tensor) -> object:
        """Hidden states in the shape that the model expects of a block."""
        return hidden if self.rest is None else self.container((hidden, *self.rest))


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block, or a part of one, returned."""
    return output if isinstance(output, Tensor) else output[0]


def mirror_of(output: Any) -> Mirror:
    """Remembers the shape of an output; of tensors beside the hidden states only parameters are kept, which are the
    same for all samples.
    """
    width = hidden_of(output).shape[-1]
    if isinstance(output, Tensor):
        return Mirror(None, width=width)
    rest = (None if isinstance(part, Tensor) and not isinstance(part, nn.Parameter) else part for part in output[1:])
    return Mirror(tuple(rest), list if isinstance(output, list) else tuple, width)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Applies a change to every tensor in nested tuples, lists and mappings, which are copied."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(v, change) for v in value)
    if isinstance(value, MutableMapping):
        changed = copy.copy(value)
        changed.update({k: map_tensors(v, change) for k, v in value.items()})
        return changed
    return value


def leaves(value: object) -> Iterator[object]:
    """Every value in nested tuples, lists and mappings; empty ones that blocks may write to are values themselves."""
    if isinstance(value, (tuple, list)) and len(value):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, MutableMapping) and len(value):
        for key in value:
            yield key
            yield from leaves(value[key])
    else:
        yield value


@contextlib.contextmanager
def replaced_forward(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., object]]) -> Iterator[None]:
    """Gives modules another forward for a while."""
    own = [module.__dict__.get("forward") for module in modules]  # set by the user, or by hooks that move weights
    try:
        for module, forward in zip(modules, forwards, strict=True):
            module.forward = forward
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            module.__dict__.pop("forward", None)
            if before is not None:
                module.forward = before


def ending_in(modules: Sequence[nn.Module], mirror: Mirror, final: Tensor) -> contextlib.AbstractContextManager[None]:
    """For a while the blocks give ``final``: what the model does with it is what stands behind them, norm and head."""
    return replaced_forward(modules, [lambda *_args, **_kwargs: mirror.wrap(final)] * len(modules))


@torch.no_grad()
def probe_mirror(
    run: Callable[[Tensor], Any], blocks: Sequence[nn.Module], ids: Int[Tensor, "samples tokens"]
) -> Mirror:
    """Runs block 0 for real on a few tokens to see how a block of this model returns its hidden states.

    ``run`` takes token ids through the model's embedding and blocks; block 0 must hold its weights.

    Raises: ModelError if block 0 has no part in that.
    """
    seen: list[Mirror] = []
    first = blocks[0].forward

    def real(*args: Any, **kwargs: Any) -> Any:
        output = first(*args, **kwargs)
        seen.append(mirror_of(output))
        return output

    def echo(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return seen[0].wrap(hidden)

    with replaced_forward(blocks, [real] + [echo] * (len(blocks) - 1)):
        run(ids[:1, :PROBE_TOKENS])
    if not seen:
        raise ModelError("the model runs without its block 0; autoprune needs every block to be called once")
    return seen[0]


@torch.no_grad()
def capture(
    run: Callable[[Tensor], Any], blocks: Sequence[nn.Module], mirror: Mirror, ids: Int[Tensor, "samples tokens"]
) -> tuple[Float[Tensor, "samples tokens ..."], list[BlockCall]]:
    """A hollow forward pass: block 0's input, and every block's own arguments.

    Raises: ModelError if some block was not called, or was called more than once, or if hidden states are not laid out
    as expected.
    """
    calls: list[list[BlockCall]] = [[] for _ in blocks]
    inputs: list[Tensor] = []

    def recorder(index: int) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            keyword = None if args else "hidden_states"
            hidden = args[0] if args else kwargs.pop("hidden_states")
            calls[index].append(BlockCall(args[1:], kwargs, keyword, hidden.dtype))
            if index == 0:
                inputs.append(hidden)
            return mirror.wrap(hidden)

        return record

    with replaced_forward(blocks, [recorder(i) for i in range(len(blocks))]):
        run(ids)
    if odd := [i for i, seen in enumerate(calls) if len(seen) != 1]:
        raise ModelError(
            f"block {odd[0]} was called {len(calls[odd[0]])} times in one forward pass; autoprune needs every block to"
            " be called once"
        )
    if inputs[0].dim() < 3 or inputs[0].shape[:2] != ids.shape:
        raise ModelError(
            f"the blocks are given hidden states of shape {tuple(inputs[0].shape)} for {ids.shape[0]} samples of"
            f" {ids.shape[1]} tokens; autoprune knows models whose hidden states are (samples, tokens, …), so it"
            " can't prune this one"
        )
    return inputs[0], [seen[0] for seen in calls]


class Calls:
    """Every block's arguments for every micro-batch; equal ones are kept once."""

    def __init__(self) -> None:
        self._calls: list[list[BlockCall]] = []

    def add(self, calls: list[BlockCall]) -> None:
        """Adds the calls of the next micro-batch, one for each block."""
        shared = list(calls)
        for i, call in enumerate(calls):
            candidates = [shared[i - 1]] if i else []
            if self._calls:
                candidates.append(self._calls[0][i])
                candidates.append(self._calls[-1][i])
            shared[i] = next((known for known in candidates if known.same_as(call)), call)
        self._calls.append(shared)

    def apart(self) -> Calls:
        """The same calls with copies of what blocks may leave something in, for another pass over the same blocks."""
        copies: dict[int, Any] = {}
        other = Calls()
        for row in self._calls:
            for call in row:
                if id(call) not in copies:
                    copies[id(call)] = replace(
                        call, args=_apart(call.args, copies), kwargs=_apart(call.kwargs, copies)
                    )
            other._calls.append([copies[id(call)] for call in row])
        return other

    def of(self, batch: int, block: int) -> BlockCall:
        """How this block is called on this micro-batch."""
        return self._calls[batch][block]


def _apart(value: Any, copies: dict[int, Any]) -> Any:
    """Lists and mappings copied, each of them once; everything else as it is."""
    if isinstance(value, tuple):
        return type(value)(_apart(v, copies) for v in value)
    if isinstance(value, (list, MutableMapping)) and id(value) not in copies:
        copies[id(value)] = changed = copy.copy(value)
        for key in value if isinstance(value, MutableMapping) else range(len(value)):
            changed[key] = _apart(value[key], copies)
    return copies.get(id(value), value)


def _equal(a: Any, b: Any) -> bool:
    """Tensors and plain values by what they are; anything else may hold what blocks leave in it, so it is only equal
    to itself.
    """
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return isinstance(a, _PLAIN) and isinstance(b, _PLAIN) and bool(a == b)
