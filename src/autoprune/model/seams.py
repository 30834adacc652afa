"""Finds where a model touches its residual stream, and whether a rotation of it can be folded into the weights; knows no family.

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
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from autoprune.core.rotation import orthogonal
from autoprune.errors import ModelError
from autoprune.model.activations import PROBE_TOKENS, BlockCall, Mirror, replaced_forward
from autoprune.model.anatomy import Block
from autoprune.model.experts import eager_experts
from autoprune.model.fold import Ends, Fold, Norm, Seams, fold_block, matrices
from autoprune.model.linear import Expert, Layer, is_linear
from autoprune.model.pipeline import Store, prepare_inputs
from autoprune.model.stream import Place
from autoprune.model.watch import Use, Watch

TOLERANCE = 1e-4  # relative; many norms compute in float32, whatever they are given
_NOTHING = 1e-6  # a change below it, relative to its cause, is none


class FoldStore(Store, Protocol):
    """What is needed of a store: blocks, and the model's own way from the last of them to the logits."""

    def logits(self, ids: Int[Tensor, "samples tokens"]) -> Float[Tensor, "samples tokens vocab"]:
        """The whole model on these tokens."""
        ...


@torch.no_grad()
def find_fold(store: FoldStore, ids: Int[Tensor, "samples tokens"]) -> Fold:
    """What a rotation changes in the store's model. Looks at one block of every kind, and at both ends; changes nothing.

    ``ids`` are any tokens; the first few are used.

    Raises: ModelError with the reason, if no rotation of the residual stream can be folded into this model's weights.
    """
    anatomy = store.anatomy
    if anatomy.aside:
        raise _refusal(f"what {anatomy.aside[0][0]} adds to the hidden states would not be turned with them")
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
                store.load(block.index)
                noise = _noise(0, tuple(hidden.shape), hidden.device)
                try:
                    known[kind] = _Probe(_in_float64(block), block.name, calls[block.index], noise).seams()
                except RuntimeError as error:
                    raise _refusal(f"{block.name} does not run in float64, in which it would be tried ({error})") from error
                store.release(block.index)
            found.append(known[kind])
    _check_embedding(anatomy.model, hidden, few)
    ends = _ends(store, inputs.mirror, few, hidden)
    return Fold(hidden.shape[-1], tuple(found), ends, _notices(anatomy.model, ends))


@dataclass
class _Run:
    """What one run of a block showed, in float64."""

    returned: Tensor
    entering: dict[str, Tensor]  # what first entered a layer, or a part that could be a norm
    left: dict[str, Tensor]  # what such a part then gave


@dataclass(frozen=True)
class _Probe:
    """A copy of a block in float64, and the hidden states that it is run on."""

    block: Block
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
            norm = Norm(name, neutral_weight(self.block.module.get_submodule(name), f"{self.called}.{name}", self.hidden))
            fed = {_role(la) for la in layers.values() if la.name in clean.entering and _rows_of(clean.entering[la.name], clean.left[name])}
            readers |= {layer.name: norm for layer in layers.values() if _role(layer) in fed}
        others = [la for la in layers.values() if la.name not in readers and la.shape[0] == self.hidden.shape[-1]]
        first = {_role(la): la for la in reversed(others) if la.name in clean.entering}  # one expert stands for all
        adding = {role for role, layer in first.items() if self._adds(layer, clean)}
        seams = Seams(readers, tuple(la.name for la in others if _role(la) in adding))
        rotation = orthogonal(_noise(4, (self.hidden.shape[-1],) * 2, self.hidden.device))
        fold_block(self.block, seams, rotation)
        expected = clean.returned @ rotation
        gap = float((self.run(self.hidden @ rotation).returned - expected).norm() / expected.norm())
        if not gap <= TOLERANCE:
            raise _refusal(f"{self.called}, turned, gives other hidden states than before (by {gap:.2g} of their size)")
        return seams

    def run(self, hidden: Tensor, held: Mapping[str, Tensor] | None = None, added: tuple[str, Tensor] | None = None) -> _Run:
        """Runs the block. Parts in ``held`` give what is held there; the module ``added[0]`` gives ``added[1]`` on top."""
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
                    seen.entering.setdefault(name, args[0].double().flatten(0, -2))  # routers may multiply a copy of their weight
                elif _like_a_norm(module, args, output, self.hidden):
                    seen.entering.setdefault(name, args[0].double())
                    seen.left.setdefault(name, output.double())
                    output = held.get(name, output)
                return output + added[1].reshape(output.shape) if added is not None and added[0] == name else output

            return look

        handles = [m.register_forward_hook(hook(n)) for n, m in self.block.module.named_modules() if n and not list(m.children())]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _stream_norms(self, clean: _Run) -> list[str]:
        """The norms that read the residual stream: with all held, what enters them moves as the block's input moves.

        Raises: ModelError if there is none, or if a norm stands behind a sub-block.
        """
        moved = _noise(1, tuple(self.hidden.shape), self.hidden.device)
        after = self.run(self.hidden + moved, clean.left)
        reading = [name for name in clean.left if _along(after.entering[name] - clean.entering[name], moved)]
        for name in clean.left:
            if name not in reading and _along(self.run(self.hidden, clean.left, (name, moved)).returned - clean.returned, moved):
                raise _refusal(f"the norm {self.called}.{name} stands behind a sub-block, between its last layer and the residual stream")
        if not reading:
            raise _refusal(f"no norm stands in front of the layers of {self.called}")
        return reading

    def _adds(self, layer: Layer, clean: _Run) -> bool:
        """Whether the layer's output is added to the stream. An expert as wide as the stream can do nothing else."""
        if not is_linear(layer.module):
            return isinstance(layer, Expert)
        moved = _noise(2, (len(clean.entering[layer.name]), layer.shape[0]), self.hidden.device)
        change = (self.run(self.hidden, clean.left, (layer.name, moved)).returned - clean.returned).flatten(0, -2)
        reached = change.norm(dim=-1) > _NOTHING
        return bool(reached.any()) and _rows_of(change[reached], moved)


def neutral_weight(norm: nn.Module, called: str, like: Tensor) -> float | None:
    """The weight with which an RMSNorm scales by one: 1, or 0 where it adds one itself; None if it has no weight.

    Raises: ModelError if it does anything but divide by the length and multiply by a weight.
    """
    norm = copy.deepcopy(norm).double()
    x = _noise(5, (16, like.shape[-1]), like.device)
    rotation = orthogonal(_noise(6, (like.shape[-1],) * 2, like.device))
    weight = norm._parameters.get("weight")
    neutral = None
    if weight is not None:
        given, own = norm(x), weight.data.clone()
        weight.data.zero_()
        neutral = 0.0 if norm(x).any() else 1.0
        weight.data.fill_(neutral)
        scaled = norm(x) * (own + 1 - neutral)
    if torch.allclose(norm(x + 1), norm(x), rtol=TOLERANCE, atol=TOLERANCE):
        raise _refusal(f"{called} ({type(norm).__name__}) takes away the mean, which a rotation moves; only RMSNorms can be turned")
    if not torch.allclose(norm(x @ rotation), norm(x) @ rotation, rtol=TOLERANCE, atol=TOLERANCE):
        raise _refusal(f"{called} ({type(norm).__name__}) does not turn as hidden states do: it is no RMSNorm")
    if weight is not None and not torch.allclose(scaled, given, rtol=TOLERANCE, atol=TOLERANCE):
        raise _refusal(f"{called} ({type(norm).__name__}) does more than divide by the length and multiply by its weight")
    return neutral


def _ends(store: FoldStore, mirror: Mirror, ids: Tensor, like: Tensor) -> Ends:
    """Looks at what becomes of hidden states behind the last block. Raises: ModelError if that is not norm, then head."""
    model: Any = store.anatomy.model
    final = _noise(7, tuple(like.shape), like.device).to(like.dtype)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def look(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and args[0].shape[-1] == final.shape[-1] and isinstance(output, Tensor):
                seen[name] = (args[0], output)

        return look

    blocks = [block.module for block in store.anatomy.blocks]
    inside = {id(module) for block in blocks for module in block.modules()}
    parts = {name: m for name, m in model.named_modules() if id(m) not in inside and not list(m.children())}
    handles = [module.register_forward_hook(hook(name)) for name, module in parts.items()]
    try:
        with replaced_forward(blocks, [lambda *_args, **_kwargs: mirror.wrap(final)] * len(blocks)):
            store.logits(ids)
    finally:
        for handle in handles:
            handle.remove()
    head = model.get_output_embeddings()
    norms = [name for name, (x, y) in seen.items() if x.shape == y.shape and torch.equal(x, final) and not torch.equal(x, y)]
    heads = [x.double() for name, (x, _) in seen.items() if parts[name] is head]
    if len(norms) != 1 or not heads or not _rows_of(heads[0], seen[norms[0]][1].double()):
        raise _refusal("between its last block and its head stands something else than one norm")
    neutral = neutral_weight(parts[norms[0]], norms[0], like)
    return Ends(Norm(norms[0], neutral), head.weight is model.get_input_embeddings().weight)


def _check_embedding(model: Any, hidden: Tensor, ids: Tensor) -> None:
    """Raises: ModelError unless what enters the first block is a multiple of the tokens' embeddings."""
    embedded = model.get_input_embeddings().weight[ids.to(hidden.device)].double()
    tolerance = max(TOLERANCE, 4 * torch.finfo(hidden.dtype).eps)
    if embedded.shape == hidden.shape:
        factor = (hidden.double() * embedded).sum() / embedded.square().sum()
        if bool((hidden.double() - factor * embedded).norm() <= tolerance * hidden.double().norm()):
            return
    raise _refusal("what enters its first block is not the embedding of the tokens, or a multiple of it")


def _notices(model: Any, ends: Ends) -> tuple[str, ...]:
    if not ends.tied:
        return ()
    weight = model.get_input_embeddings().weight
    size = weight.numel() * weight.element_size() / 2**20
    return (
        "embedding and head were one matrix and are two from now on, because the last norm's weight goes into the head: "
        f"the model grows by {size:,.1f} MiB",
    )


def _in_float64(block: Block) -> Block:
    module = copy.deepcopy(block.module).double()
    layers = [replace(la, module=module.get_submodule(la.owner if isinstance(la, Expert) else la.name)) for la in block.layers]
    return replace(block, module=module, layers=tuple(layers))


def _role(layer: Layer) -> str:
    """The same for all experts of a block."""
    return re.sub(r"\d+", "#", layer.parameter_name)


def _takes_rows(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether a module multiplies what it is given by its one matrix ``[out, in]``, as linear maps and most routers do."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and bool(args) and isinstance(args[0], Tensor) and args[0].dim() > 1


def _like_a_norm(module: nn.Module, args: tuple[Any, ...], output: Any, hidden: Tensor) -> bool:
    """Whether a part may be a norm of hidden states: no matrix in it, same shape, other values."""
    if any(p.dim() > 1 for p in module.parameters()) or not (args and isinstance(args[0], Tensor) and isinstance(output, Tensor)):
        return False
    return args[0].shape == output.shape and output.shape[-1] == hidden.shape[-1] and not torch.equal(args[0], output)


def _along(change: Tensor, cause: Tensor) -> bool:
    """Whether the change is the cause, times a number for every token."""
    if change.numel() != cause.numel() or not change.norm() > _NOTHING * cause.norm():
        return False
    change = change.reshape(cause.shape)
    factor = (change * cause).sum(-1, keepdim=True) / cause.square().sum(-1, keepdim=True)
    return bool((change - factor * cause).norm() <= TOLERANCE * change.norm())


def _rows_of(rows: Tensor, whole: Tensor) -> bool:
    """Whether every row is a multiple of some row of the whole."""
    if rows.shape[-1] != whole.shape[-1]:
        return False
    rows, whole = (nn.functional.normalize(x.flatten(0, -2), dim=-1) for x in (rows, whole))
    return bool(((rows @ whole.T).abs().amax(-1) > 1 - TOLERANCE**2).all())


def _noise(seed: int, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "..."]:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def _refusal(reason: str) -> ModelError:
    return ModelError(f"the hidden states of this model can't be rotated: {reason}; leave the rotation out")
