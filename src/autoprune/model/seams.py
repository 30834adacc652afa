"""Finds where a model touches its residual stream, and whether a rotation can be folded in; knows no family.

Every kind of block is run on a few tokens. With all norms held at what they gave before, a block is the identity plus
constants: so it shows which norms read the residual stream, and which layers add to it. What was found is then tried:
a block that was turned, given turned hidden states, must return turned ones.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from autoprune.core.rotation import orthogonal
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.calls import PROBE_TOKENS, BlockCall
from autoprune.model.ends import check_embedding, find_ends, notices
from autoprune.model.experts import eager_experts
from autoprune.model.fold import Fold, Norm, Seams, fold_block, matrices
from autoprune.model.layers import Expert, Layer, is_linear
from autoprune.model.stream import Place
from autoprune.model.turning import NOTHING, TOLERANCE, along, neutral_weight, noise, refusal, rows_of
from autoprune.model.walk import Store, prepare_inputs, walk
from autoprune.model.watch import Use, Watch


@torch.no_grad()
def find_fold(store: Store, ids: Int[Tensor, "samples tokens"]) -> Fold:
    """What a rotation changes in the store's model. Looks at one block of every kind and both ends; changes nothing.

    ``ids`` are any tokens; the first few are used.

    Raises: ModelError with the reason, if no rotation of the residual stream can be folded into this model's weights.
    """
    anatomy = store.anatomy
    if anatomy.aside:
        raise refusal(f"what {anatomy.aside[0][0]} adds to the hidden states would not be turned with them")
    few = ids[:1, :PROBE_TOKENS]
    inputs, _ = prepare_inputs(store, few, 1, Place("device", store.device))
    assert inputs.probe is not None
    hidden, calls = inputs.probe.hidden, inputs.probe.calls
    known: dict[object, Seams] = {}
    found = []
    with eager_experts(anatomy.model):
        for block in anatomy.blocks:
            kind = tuple((name, tuple(p.shape)) for name, p in block.module.named_parameters())
            if kind not in known:
                known[kind] = _seams(store, block.index, calls[block.index], hidden)
            found.append(known[kind])
    check_embedding(anatomy.model, hidden, few)
    ends = find_ends(store, inputs.mirror, few, hidden)
    return Fold(hidden.shape[-1], tuple(found), ends, notices(anatomy.model, ends))


def _seams(store: Store, index: int, call: BlockCall, like: Tensor) -> Seams:
    block, hidden = copy_to_try(store, index), noise(0, tuple(like.shape), like.device)
    try:
        return _Probe(block, block.name, call, hidden).seams()
    except RuntimeError as error:
        raise refusal(f"{block.name} does not run in float64, in which it would be tried ({error})") from error


def copy_to_try(store: Store, index: int) -> BlockAnatomy:
    """One block with its weights, in float64, to be changed at will."""
    (block,) = (
        replace(block, module=copy.deepcopy(block.module).double())
        for block in walk(store, start=index, stop=index + 1)
    )
    layers = (
        replace(la, module=block.module.get_submodule(la.owner if isinstance(la, Expert) else la.name))
        for la in block.layers
    )
    return replace(block, layers=tuple(layers))


@dataclass
class _Run:
    """What one run of a block showed, in float64."""

    returned: Tensor
    entering: dict[str, Tensor]  # what first entered a layer, or a part that could be a norm
    left: dict[str, Tensor]  # what such a part then gave


@dataclass(frozen=True)
class _Probe:
    """A copy of a block in float64, and the hidden states that it is run on."""

    block: BlockAnatomy
    called: str  # the block's name in the model
    call: BlockCall
    hidden: Float[Tensor, "1 tokens width"]

    def seams(self) -> Seams:
        """Where the block touches the stream. Turns the copy.

        Raises: ModelError if the turned block does not do what it did before.
        """
        clean, layers = self.run(self.hidden), matrices(self.block)
        readers: dict[str, Norm] = {}
        for name in self._stream_norms(clean):
            norm = Norm(
                name, neutral_weight(self.block.module.get_submodule(name), f"{self.called}.{name}", self.hidden)
            )
            fed = {
                _role(la)
                for la in layers.values()
                if la.name in clean.entering and rows_of(clean.entering[la.name], clean.left[name])
            }
            readers |= {layer.name: norm for layer in layers.values() if _role(layer) in fed}
        others = [la for la in layers.values() if la.name not in readers and la.shape[0] == self.hidden.shape[-1]]
        first = {_role(la): la for la in reversed(others) if la.name in clean.entering}  # one expert stands for all
        adding = {role for role, layer in first.items() if self._adds(layer, clean)}
        seams = Seams(readers, tuple(la.name for la in others if _role(la) in adding))
        rotation = orthogonal(noise(4, (self.hidden.shape[-1],) * 2, self.hidden.device))
        fold_block(self.block, seams, rotation)
        expected = clean.returned @ rotation
        gap = float((self.run(self.hidden @ rotation).returned - expected).norm() / expected.norm())
        if not gap <= TOLERANCE:
            raise refusal(f"{self.called}, turned, gives other hidden states than before (by {gap:.2g} of their size)")
        return seams

    def run(
        self, hidden: Tensor, held: Mapping[str, Tensor] | None = None, added: tuple[str, Tensor] | None = None
    ) -> _Run:
        """Runs the block. Parts in ``held`` give what is held; the module ``added[0]`` gives ``added[1]`` on top."""
        seen = _Run(hidden, {}, {})

        def note(uses: list[Use]) -> None:
            for use in uses:
                seen.entering.setdefault(use.layer.name, use.x.double().flatten(0, -2))

        with self._hooked(seen, held or {}, added), Watch(tuple(matrices(self.block).values()), coming=note):
            seen.returned = self.call(self.block.module, hidden)
        return seen

    @contextmanager
    def _hooked(self, seen: _Run, held: Mapping[str, Tensor], added: tuple[str, Tensor] | None) -> Iterator[None]:
        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
            def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                if _takes_rows(module, args):
                    seen.entering.setdefault(
                        name, args[0].double().flatten(0, -2)
                    )  # routers may multiply a copy of their weight
                elif _like_a_norm(module, args, output, self.hidden):
                    seen.entering.setdefault(name, args[0].double())
                    seen.left.setdefault(name, output.double())
                    output = held.get(name, output)
                return output + added[1].reshape(output.shape) if added is not None and added[0] == name else output

            return look

        layers = matrices(self.block)
        watched = [
            (n, m) for n, m in self.block.module.named_modules() if n and (n in layers or not list(m.children()))
        ]
        handles = [module.register_forward_hook(hook(name)) for name, module in watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _stream_norms(self, clean: _Run) -> list[str]:
        """The norms that read the residual stream: with all held, what enters them moves as the block's input moves.

        Raises: ModelError if there is none, or if a norm stands behind a sub-block.
        """
        moved = noise(1, tuple(self.hidden.shape), self.hidden.device)
        after = self.run(self.hidden + moved, clean.left)
        reading = [name for name in clean.left if along(after.entering[name] - clean.entering[name], moved)]
        for name in clean.left:
            if name not in reading and along(
                self.run(self.hidden, clean.left, (name, moved)).returned - clean.returned, moved
            ):
                raise refusal(
                    f"the norm {self.called}.{name} stands behind a sub-block, in front of the residual stream"
                )
        if not reading:
            raise refusal(f"no norm stands in front of the layers of {self.called}")
        return reading

    def _adds(self, layer: Layer, clean: _Run) -> bool:
        """Whether the layer's output is added to the stream. An expert as wide as the stream can do nothing else."""
        if not is_linear(layer.module):
            return isinstance(layer, Expert)
        moved = noise(2, (len(clean.entering[layer.name]), layer.shape[0]), self.hidden.device)
        change = (self.run(self.hidden, clean.left, (layer.name, moved)).returned - clean.returned).flatten(0, -2)
        reached = change.norm(dim=-1) > NOTHING
        return bool(reached.any()) and rows_of(change[reached], moved)


def _role(layer: Layer) -> str:
    """The same for all experts of a block."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", layer.parameter_name)


def _takes_rows(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether a module multiplies what it is given by its one matrix, as linear maps and most routers do."""
    weight = module._parameters.get("weight")
    return (
        weight is not None and weight.dim() == 2 and bool(args) and isinstance(args[0], Tensor) and args[0].dim() > 1
    )


def _like_a_norm(module: nn.Module, args: tuple[Any, ...], output: Any, hidden: Tensor) -> bool:
    """Whether a part may be a norm of hidden states: no matrix in it, same shape, other values."""
    if any(p.dim() > 1 for p in module.parameters()) or not (
        args and isinstance(args[0], Tensor) and isinstance(output, Tensor)
    ):
        return False
    return args[0].shape == output.shape and output.shape[-1] == hidden.shape[-1] and not torch.equal(args[0], output)
