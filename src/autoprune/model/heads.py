"""Rotations between an attention's values and its output projection: where they fit, found by trying, and the fold.

A layer's output is replaced by one signal over the tokens, the same in all channels, and then by multiples of it. If
what enters another layer is that signal mixed over tokens, channel by channel, then the first layer makes the values,
and channels that got the same mixture belong to one head. No family of models is known here, and no number of heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from autoprune.core.heads import HeadTerm
from autoprune.core.rotation import orthogonal
from autoprune.errors import ModelError
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.calls import PROBE_TOKENS, BlockCall
from autoprune.model.experts import eager_experts
from autoprune.model.fold import bias_of
from autoprune.model.layers import Layer, is_linear
from autoprune.model.seams import copy_to_try
from autoprune.model.stream import Place
from autoprune.model.turning import NOTHING, TOLERANCE, noise
from autoprune.model.walk import Store, prepare_inputs

_SAME = 1e-3  # relative; what seems to be the same is tried afterwards


@dataclass(frozen=True)
class Heads:
    """Two layers of a block with nothing between them but sums over tokens, head by head."""

    value: str  # names relative to the block
    output: str
    rows: tuple[tuple[int, ...], ...]  # [heads, head], of the value layer
    columns: tuple[tuple[tuple[int, ...], ...], ...]  # [heads, group, head], of the output projection: its query heads

    def term(self, block: BlockAnatomy, squares: Float[Tensor, " in"], gram: Float[Tensor, "in in"]) -> HeadTerm:
        """What their rotations are learned from, in float32: the weights as they are in the block, ``squares`` the
        diagonal of the Gram of what enters the value layer, ``gram`` that of what enters the output projection.
        """
        value, output = self.layers(block)
        columns = torch.tensor(self.columns, device=gram.device)
        return HeadTerm(
            value.matrix[self.rows_on(value)].float(),
            squares.float(),
            output.matrix[:, columns].float(),
            gram[columns[..., :, None], columns[..., None, :]].float(),
        )

    def turn(self, block: BlockAnatomy, rotations: Float[Tensor, "heads head head"]) -> None:
        """Turns the two layers in place, computed in float64 and rounded once; the block must hold them."""
        value, output = self.layers(block)
        rows, columns = self.rows_on(value), torch.tensor(self.columns, device=output.matrix.device)
        turned = value.matrix.double()
        rotations = rotations.to(turned)
        turned[rows] = rotations.mT @ turned[rows]
        value.assign(turned)
        if (bias := bias_of(value)) is not None:
            wide = bias.double()
            wide[rows] = (rotations.mT @ wide[rows][..., None])[..., 0]
            bias.copy_(wide)
        turned = output.matrix.double()
        turned[:, columns] = turned[:, columns] @ rotations
        output.assign(turned)

    def names(self, block: BlockAnatomy) -> tuple[str, ...]:
        """The block's parameters that ``turn`` changes."""
        value, output = self.layers(block)
        bias = (f"{self.value}.bias",) if bias_of(value) is not None else ()
        return (value.parameter_name, *bias, output.parameter_name)

    def layers(self, block: BlockAnatomy) -> tuple[Layer, Layer]:
        """The value layer and the output projection."""
        named = {layer.name: layer for layer in block.layers}
        return named[self.value], named[self.output]

    def rows_on(self, value: Layer) -> Int[Tensor, "heads head"]:
        """The rows, as an index on the layer's device."""
        return torch.tensor(self.rows, device=value.matrix.device)


@dataclass(frozen=True)
class HeadFold:
    """Where values can be turned in a model."""

    blocks: tuple[tuple[Heads, ...], ...]  # of every block; some may have none
    notices: tuple[str, ...]  # what the user should know


@torch.no_grad()
def find_heads(store: Store, ids: Int[Tensor, "samples tokens"]) -> HeadFold:
    """Where values can be turned in the store's model. Every block is tried; nothing changes.

    ``ids`` are any tokens; the first few are used.

    Raises: ModelError with the reason if that is nowhere.
    """
    anatomy = store.anatomy
    inputs, _ = prepare_inputs(store, ids[:1, :PROBE_TOKENS], 1, Place("device", store.device))
    assert inputs.probe is not None
    known: dict[object, tuple[Heads, ...]] = {}
    found = []
    with eager_experts(anatomy.model):
        for block in anatomy.blocks:
            kind = tuple((name, tuple(p.shape)) for name, p in block.module.named_parameters())
            attempt = _Attempt(store, block.index, inputs.probe.calls[block.index], inputs.probe.hidden)
            known[kind] = attempt.heads(known.get(kind, ()))
            found.append(known[kind])
    without = [block.name for block, heads in zip(anatomy.blocks, found, strict=True) if not heads]
    if len(without) == len(found):
        raise _refusal(
            f"in {without[0]} no two layers were found with nothing but sums over tokens between them (queries, keys"
            " and values in one layer, a norm on the values, or a gate behind attention)"
        )
    told = [
        f"{len(without)} of {len(found)} blocks have no values that can be turned, such as {name}" for name in without
    ]
    return HeadFold(tuple(found), tuple(told[:1]))


@dataclass(frozen=True)
class _Attempt:
    """One block, of which copies are turned in float64 to see whether it still computes the same."""

    store: Store
    index: int
    call: BlockCall
    like: Tensor  # hidden states of a few tokens

    def heads(self, likely: tuple[Heads, ...]) -> tuple[Heads, ...]:
        """What can be turned: what is ``likely``, as in an earlier block of the kind, if right here, or sought."""
        hidden = noise(0, tuple(self.like.shape), self.like.device)
        block = copy_to_try(self.store, self.index)
        try:
            expected = self.call(block.module, hidden)
            if likely and self._right(likely, hidden, expected):
                return likely
            found: list[Heads] = []
            layers = [la for la in block.layers if is_linear(la.module) and la.name not in block.experts]
            for layer in layers:
                others = [la for la in layers if la is not layer]
                for heads in _behind(layer, others, block.module, self.call, hidden):
                    taken = {name for one in found for name in (one.value, one.output)}
                    if not taken & {heads.value, heads.output} and self._right((heads,), hidden, expected):
                        found.append(heads)
        except RuntimeError as error:
            raise _refusal(f"{block.name} does not run in float64, in which it would be tried ({error})") from error
        return tuple(found)

    def _right(self, found: tuple[Heads, ...], hidden: Tensor, expected: Tensor) -> bool:
        """Whether the block, turned there at random, gives what it gave."""
        block = copy_to_try(self.store, self.index)
        for number, heads in enumerate(found):
            size = (len(heads.rows), *[len(heads.rows[0])] * 2)
            heads.turn(block, orthogonal(noise(10 + number, size, hidden.device)))
        return bool((self.call(block.module, hidden) - expected).norm() <= TOLERANCE * expected.norm())


def _behind(value: Layer, others: list[Layer], module: nn.Module, call: BlockCall, hidden: Tensor) -> list[Heads]:
    """The layers to which ``value`` seems to give values."""
    channels, tokens = value.shape[0], hidden.shape[1]
    signal = noise(8, (tokens, 1), hidden.device)

    def run(factors: Tensor) -> dict[str, Tensor]:
        def replaced(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
            return (signal * factors).reshape(out.shape) if out.numel() == tokens * channels else out

        seen: dict[str, Tensor] = {}
        handles = [la.module.register_forward_pre_hook(_note(seen, la.name)) for la in others]
        handles.append(value.module.register_forward_hook(replaced))
        try:
            call(module, hidden)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    rows = torch.arange(channels, dtype=signal.dtype, device=signal.device)
    same, scaled = run(torch.ones_like(rows)), run(_factors(rows, channels))
    pairs = [
        (name, _grouped(x, scaled[name], channels))
        for name, x in same.items()
        if name in scaled and x.shape[-1] % channels == 0
    ]
    return [
        Heads(value.name, name, tuple(groups), tuple(groups.values())) for name, groups in pairs if groups is not None
    ]


def _factors(rows: Float[Tensor, " rows"], channels: int) -> Float[Tensor, " rows"]:
    """One for each row, every second negative, for what scales with its input need not be a sum (ReLU)."""
    return (1 - 2 * (rows % 2)) * (1 + rows / channels)


def _note(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.setdefault(name, args[0].double().flatten(0, -2))

    return look


def _grouped(
    same: Float[Tensor, "tokens in"], scaled: Float[Tensor, "tokens in"], channels: int
) -> Mapping[tuple[int, ...], tuple[tuple[int, ...], ...]] | None:
    """The value layer's rows of each head, and for each the columns of all its query heads; None if there are none.

    Columns that got the same mixture of tokens are a query head; the factor of each says from which row it came.
    """
    sizes = same.square().sum(0)
    if not bool(sizes.min() > 0):
        return None
    factors = (same * scaled).sum(0) / sizes
    rows = ((factors.abs() - 1) * channels).round()
    if not (scaled - same * _factors(rows, channels)).norm() <= _SAME / channels * scaled.norm():
        return None
    step = (same[:, 1:] - same[:, :-1]).norm(dim=0) > NOTHING * same.norm(dim=0).max()
    edges = [0, *(step.nonzero()[:, 0] + 1).tolist(), same.shape[1]]
    groups: dict[tuple[int, ...], tuple[tuple[int, ...], ...]] = {}
    for start, stop in itertools.pairwise(edges):
        head = tuple(int(row) for row in rows[start:stop].tolist())
        groups[head] = (*groups.get(head, ()), tuple(range(start, stop)))
    uniform = len({(len(head), len(queries)) for head, queries in groups.items()}) == 1
    covered = sorted(row for head in groups for row in head) == list(range(channels))
    return groups if uniform and covered and len(next(iter(groups))) > 1 else None


def _refusal(reason: str) -> ModelError:
    return ModelError(f"the values of this model's attention can't be rotated: {reason}; --basis stream leaves them")
