"""LLM-Barber's view of a block: its sub-blocks, each run alone on the block's own forward code.

While one sub-block runs, the others are stubbed: earlier ones return what they returned before, later ones
return zeros. So the norms and residuals between them are the model's own, and no family needs code here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.core.statistics import GradientEnergy
from autoprune.errors import ModelError
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.calls import BlockCall, Mirror, hidden_of, mirror_of, replaced_forward
from autoprune.model.layers import Expert, Layer
from autoprune.model.observe import InputSample
from autoprune.model.watch import Use, Watch


@dataclass(frozen=True)
class SubBlock:
    """The attention half or the MLP half of a block; ``module`` is None for bare layers (OPT's fc1 and fc2)."""

    name: str
    layers: tuple[Layer, ...]  # the layers to prune
    members: tuple[nn.Module, ...]  # the child module, or the bare layers in order of execution
    mirrors: tuple[Mirror, ...]  # how each member returns its output

    @property
    def output(self) -> nn.Module:
        """The module whose output is the sub-block's output."""
        return self.members[-1]


def find_sub_blocks(
    block: BlockAnatomy, layers: Sequence[Layer], run: Callable[[BlockAnatomy], Tensor]
) -> list[SubBlock]:
    """Groups layers by the part of the block that holds them, in order of execution; bare layers form one group.

    ``run`` runs the block, on whatever tokens, to show that order. Raises: ModelError if a layer is in no part that
    runs, or if the block does not give the same with what its parts returned put in their place.
    """
    children = _parts(block.module, block.layers)
    bare = [la.module for la in block.layers if not any(la.name.startswith(name + ".") for name in children)]
    order: list[tuple[nn.Module, Mirror]] = []
    returned: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _: object, output: object) -> None:
        order.append((module, mirror_of(output)))
        returned[module] = hidden_of(output).clone()

    handles = [module.register_forward_hook(note) for module in [*children.values(), *bare]]
    try:
        whole = run(block)
    finally:
        for handle in handles:
            handle.remove()
    found = _group(order, children, bare, layers)
    grouped = {la.name for sub in found for la in sub.layers}
    if lost := [block.full_name(la) for la in layers if la.name not in grouped]:
        raise ModelError(
            f"{lost[0]} is in no part of its block that runs, so it can't be rebuilt by sub-blocks; "
            f"leave it dense with --ignore {lost[0]!r}, or prune this model without --prune_barber"
        )
    _check_separable(block, found, returned, run, whole)
    return found


def _check_separable(
    block: BlockAnatomy,
    subs: Sequence[SubBlock],
    returned: dict[nn.Module, Tensor],
    run: Callable[[BlockAnatomy], Tensor],
    whole: Tensor,
) -> None:
    """Raises: ModelError if more passes between the block's parts than one tensor: then they can't be run one
    by one.
    """
    members = [(member, mirror) for sub in subs for member, mirror in zip(sub.members, sub.mirrors, strict=True)]
    trouble = "it gives another result"
    with replaced_forward(
        [member for member, _ in members], [_returns(mirror, returned[member]) for member, mirror in members]
    ):
        try:
            if torch.allclose(run(block), whole, rtol=0, atol=0, equal_nan=True):
                return
        except Exception as error:  # whatever the block's own code does with what is missing
            trouble = f"{type(error).__name__}: {error}"
    parts = ", ".join(sub.name for sub in subs)
    raise ModelError(
        f"{block.name}: with what its parts ({parts}) returned put in their place the block does not run as before"
        f" ({trouble}), so they can't be rebuilt one by one; prune this model without"
        " that step, such as --prune_barber"
    )


def _parts(module: nn.Module, layers: Sequence[Layer], prefix: str = "") -> dict[str, nn.Module]:
    """The block's direct children that hold layers; a list of modules is never called itself, so its members stand for
    it.
    """
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        if any(la.name.startswith(f"{prefix}{name}.") for la in layers):
            inside = isinstance(child, (nn.ModuleList, nn.ModuleDict))
            found |= _parts(child, layers, f"{prefix}{name}.") if inside else {prefix + name: child}
    return found


def _group(
    order: list[tuple[nn.Module, Mirror]],
    children: dict[str, nn.Module],
    bare: list[nn.Module],
    layers: Sequence[Layer],
) -> list[SubBlock]:
    found: list[SubBlock] = []
    for module, mirror in order:
        if module in bare:
            continue
        name = next(n for n, child in children.items() if child is module)
        inside = tuple(la for la in layers if la.name.startswith(name + "."))
        found.append(SubBlock(name, inside, (module,), (mirror,)))
    executed = [(module, mirror) for module, mirror in order if module in bare]
    if executed:
        names = {id(la.module): la.name for la in layers}
        members = tuple(module for module, _ in executed)
        inside = tuple(la for la in layers if any(la.module is m for m in members))
        name = "+".join(names.get(id(m), "-") for m in members)
        last = next(i for i, (m, _) in enumerate(order) if m is members[-1])
        later = {id(m) for m, _ in order[last:]}
        place = sum(1 for sub in found if id(sub.output) not in later)
        found.insert(place, SubBlock(name, inside, members, tuple(mirror for _, mirror in executed)))
    return found


class SubBlockRunner:
    """Runs one sub-block of a block at a time; ``runs`` counts how often, for the tests."""

    def __init__(self, block: BlockAnatomy, sub_blocks: Sequence[SubBlock]) -> None:
        self._block, self.sub_blocks = block, sub_blocks
        self.runs = 0

    def run(
        self,
        active: int,
        call: BlockCall,
        hidden: Float[Tensor, "samples tokens width"],
        earlier: Sequence[Float[Tensor, "samples tokens _"]],
    ) -> tuple[Float[Tensor, "samples tokens _"], Float[Tensor, "samples tokens width"]]:
        """Output of sub-block ``active`` and of the block, with ``earlier`` those of the sub-blocks before it."""
        outputs: list[Tensor] = []
        handle = self.sub_blocks[active].output.register_forward_hook(
            lambda _m, _a, output: outputs.append(hidden_of(output))
        )
        modules, stubs = self._stubs(active, earlier)
        try:
            with replaced_forward(modules, stubs):
                result = call(self._block.module, hidden)
        finally:
            handle.remove()
        self.runs += 1
        return outputs[0].reshape(hidden.shape[0], -1, outputs[0].shape[-1]), result

    def _stubs(self, active: int, earlier: Sequence[Tensor]) -> tuple[list[nn.Module], list[Callable[..., object]]]:
        modules: list[nn.Module] = []
        stubs: list[Callable[..., object]] = []
        for i, sub in enumerate(self.sub_blocks):
            if i == active:
                continue
            for member, mirror in zip(sub.members, sub.mirrors, strict=True):
                answers = i < active and member is sub.output
                modules.append(member)
                stubs.append(_returns(mirror, earlier[i]) if answers else _zeros(mirror))
        return modules, stubs


def _returns(mirror: Mirror, output: Tensor) -> Callable[..., object]:
    def forward(*args: object, **kwargs: object) -> Any:
        return mirror.wrap(
            output.reshape(*_input(args, kwargs).shape[:-1], output.shape[-1])
        )  # OPT flattens samples and tokens

    return forward


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))


def _zeros(mirror: Mirror) -> Callable[..., object]:
    def forward(*args: object, **kwargs: object) -> Any:
        x = _input(args, kwargs)
        return mirror.wrap(x.new_zeros((*x.shape[:-1], mirror.width)))

    return forward


@contextlib.contextmanager
def weight_gradients(
    energies: dict[str, GradientEnergy],
    inputs: dict[str, InputSample],
    layers: Sequence[Layer],
    samples: int,
    tokens: int,
) -> Iterator[Callable[[Float[Tensor, " samples"]], None]]:
    """While it lasts, what it yields runs the backward pass of the samples' losses and feeds every layer's energy.

    Layers get ``dY_j`` and ``X_j`` of all samples at once. Where one gets others than the samples' ``tokens``, as an
    expert does, its rows don't say which sample they are of: then there is one backward pass for every sample, in
    which all other samples' rows have no gradient. Some of the inputs are kept in ``inputs``, to measure the layer's
    output error later.

    The weights need no gradient themselves: what flows between the layers begins at the outputs of the first ones.
    """
    mixed = any(isinstance(layer, Expert) for layer in layers) and samples > 1
    anchor = torch.zeros((), requires_grad=True)

    def seen(uses: list[Use], y: Tensor) -> Tensor:
        nonlocal mixed
        for use in uses:
            mixed |= (
                samples > 1 and use.x.shape[:-1].numel() != samples * tokens
            )  # an expert of a family that keeps them in a list
            inputs[use.layer.name].update(use.x.detach().reshape(-1, use.x.shape[-1]))
        if not torch.is_grad_enabled():
            # what the block computes without gradients decides something, as a router does; these weights have none
            return y
        if not y.requires_grad:
            y = _Beginning.apply(y, anchor)
        y.register_hook(lambda dy: _feed(energies, uses, dy, 1 if mixed else samples))
        return y

    def backward(losses: Float[Tensor, " samples"]) -> None:
        parts = losses.unbind() if mixed else [losses.sum()]
        for i, part in enumerate(parts):
            part.backward(retain_graph=i + 1 < len(parts))

    with torch.enable_grad(), Watch(layers, seen):
        yield backward


class _Beginning(torch.autograd.Function):
    """The same tensor, from now on with gradients: no leaf, which would gather one of its own and may not be changed
    in place.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor) -> Tensor:
        """``anchor`` needs a gradient, and so does what depends on it."""
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        """Here it ends."""
        return None, None


def _feed(energies: dict[str, GradientEnergy], uses: list[Use], dy: Tensor, samples: int) -> None:
    for use in uses:
        x, part = use.x.detach(), use.part(dy)
        if x.numel():
            energies[use.layer.name].update(
                part.reshape(samples, -1, part.shape[-1]), x.reshape(samples, -1, x.shape[-1])
            )
