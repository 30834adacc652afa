"""Finds blocks, layers and coverage in any decoder model, with no code per family; changes nothing."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from autoprune.core.sparsity import SemiStructured, Target
from autoprune.errors import ModelError, RecipeError
from autoprune.model.experts import fused_experts, routers, sent_to
from autoprune.model.layers import Expert, Layer, is_linear

COVERAGE_FLOOR = 0.9  # below it, a "pruned" model would be mostly dense


@dataclass(frozen=True)
class BlockAnatomy:
    """One decoder layer: its place in the model, its layers, and what of it can't be reached."""

    index: int
    name: str  # e.g. model.layers.3
    module: nn.Module
    layers: tuple[Layer, ...]
    parameters: int
    unreached: tuple[tuple[str, int], ...]  # (parameter name relative to the block, count)

    @property
    def reached(self) -> int:
        """Number of parameters that are weights of layers."""
        return sum(layer.count for layer in self.layers)

    @property
    def looked_up(self) -> int:
        """Number of parameters in tables of which a token takes one row (n-grams, position biases): none of them is a
        linear map, however large they are.
        """
        return sum(
            p.numel()
            for m in self.module.modules()
            if isinstance(m, nn.Embedding)
            for p in m.parameters(recurse=False)
        )

    @property
    def experts(self) -> frozenset[str]:
        """The names of the layers that see only the tokens that are sent to them: fused experts, and those of a
        list.
        """
        listed = sent_to(self.module)
        return frozenset(la.name for la in self.layers if isinstance(la, Expert) or id(la.module) in listed)

    def full_name(self, layer: Layer) -> str:
        """The layer's name in the model."""
        return f"{self.name}.{layer.name}"


@dataclass(frozen=True)
class Anatomy:
    """The blocks of a model, in the order in which hidden states pass through them."""

    model: nn.Module
    name: str  # of the module list, e.g. model.layers
    blocks: tuple[BlockAnatomy, ...]
    aside: tuple[
        tuple[str, int], ...
    ] = ()  # parts beside the language model, such as an image encoder: name, parameters

    @property
    def coverage(self) -> float:
        """Share of the block parameters that layers reach; tables of embeddings don't count."""
        counted = sum(block.parameters - block.looked_up for block in self.blocks)
        return sum(block.reached for block in self.blocks) / max(1, counted)

    @property
    def has_experts(self) -> bool:
        """Whether some layers are experts, which see tokens of several samples mixed: LLM-Barber is quickest with one
        sample at a time then.
        """
        return any(isinstance(layer, Expert) for block in self.blocks for layer in block.layers)


def examine(model: nn.Module) -> Anatomy:
    """Describes the model: the block list is the ModuleList that holds most parameters.

    Raises: ModelError if there is no such list or no layer in it, or if blocks share weights.
    """
    decoder = _decoder(model)
    name, modules = _block_list(model, decoder)
    _check_own_weights(model, name, modules)
    blocks = tuple(_examine_block(i, f"{name}.{i}", module) for i, module in enumerate(modules))
    if not any(block.layers for block in blocks):
        raise ModelError(
            f"{type(model).__name__}: no linear layers were found in its blocks ({name}); autoprune can't prune this"
            " model"
        )
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return Anatomy(model, name, blocks, tuple(_beside(model, decoder, head)))


def check_coverage(anatomy: Anatomy, allow_partial: bool) -> None:
    """Raises: ModelError with the list of what was not reached, when that is more than a tenth of the block
    parameters.
    """
    if anatomy.coverage >= COVERAGE_FLOOR or allow_partial:
        return
    missed: dict[str, int] = {}
    for block in anatomy.blocks:
        for name, count in block.unreached:
            missed[name] = missed.get(name, 0) + count
    listing = "\n".join(
        f"  {anatomy.name}.*.{name}: {count:,} parameters"
        for name, count in sorted(missed.items(), key=lambda item: -item[1])[:20]
    )
    raise ModelError(
        f"only {anatomy.coverage:.1%} of the block parameters of {type(anatomy.model).__name__} can be reached (at"
        f" least {COVERAGE_FLOOR:.0%} is wanted); not reached:\n{listing}\n--allow_partial prunes the rest"
        " nevertheless"
    )


def select_layers(
    anatomy: Anatomy, ignore: Sequence[str], target: Target | None, include: Sequence[str] = ()
) -> dict[int, tuple[Layer, ...]]:
    """The layers to prune of every block: those that a pattern of ``include`` matches, or all without any, but for
    those that a pattern of ``ignore`` matches. What is never pruned, such as the head, may be ignored too.

    Raises: RecipeError if a pattern matches nothing, if nothing is left, or if a width is not divisible by M.
    """
    names = [block.full_name(layer) for block in anatomy.blocks for layer in block.layers]
    for flag, pattern in [*(("include", p) for p in include), *(("ignore", p) for p in ignore)]:
        matched = any(_matches(name, pattern) for name in names)
        if not matched and not (flag == "ignore" and _stays_anyway(anatomy, pattern, names)):
            raise RecipeError(f"--{flag} {pattern!r} matches no layer; layers are called {_some(iter(names))}")

    def wanted(name: str) -> bool:
        included = not include or any(_matches(name, pattern) for pattern in include)
        return included and not any(_matches(name, pattern) for pattern in ignore)

    chosen = {b.index: tuple(la for la in b.layers if wanted(b.full_name(la))) for b in anatomy.blocks}
    if not any(chosen.values()):
        flags = [*(f"--include {p}" for p in include), *(f"--ignore {p}" for p in ignore)]
        raise RecipeError(f"{' '.join(flags)} leaves no layer to prune")
    if isinstance(target, SemiStructured):
        _check_divisible(anatomy, chosen, target)
    return chosen


def _check_divisible(anatomy: Anatomy, chosen: dict[int, tuple[Layer, ...]], target: SemiStructured) -> None:
    bad = [(b.full_name(la), la.shape[1]) for b in anatomy.blocks for la in chosen[b.index] if la.shape[1] % target.m]
    if bad:
        name, width = bad[0]
        raise RecipeError(
            f"{name} has {width} input features, which is not divisible by {target.m}, so {target} has no meaning"
            f" there ({len(bad)} such layers); leave them dense with --ignore '*.{name.rsplit('.', 1)[1]}', or choose"
            " another pattern"
        )


def _stays_anyway(anatomy: Anatomy, pattern: str, names: Sequence[str]) -> bool:
    """Whether a pattern names parts of the model in which nothing is pruned anyway."""
    parts = [name for name, _ in anatomy.model.named_modules() if name and _matches(name, pattern)]
    return bool(parts) and not any(name.startswith(f"{part}.") for part in parts for name in names)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name == pattern


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f", … ({len(listed)} in all)" if len(listed) > 3 else "")


def _block_list(model: nn.Module, decoder: nn.Module) -> tuple[str, nn.ModuleList]:
    inside = {id(module) for module in decoder.modules()}
    lists = [(name, module) for name, module in model.named_modules() if _is_list(module) and id(module) in inside]
    if not lists:
        raise ModelError(
            f"{type(model).__name__} has no list of blocks (torch.nn.ModuleList), so autoprune can't see where its"
            " layers are"
        )
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0


def _decoder(model: nn.Module) -> nn.Module:
    """The language model inside a multimodal one, as transformers names it; the model itself if what is named so has
    no blocks.
    """
    find = getattr(model, "get_decoder", None)
    decoder = find() if callable(find) else None
    return decoder if isinstance(decoder, nn.Module) and any(map(_is_list, decoder.modules())) else model


def _beside(
    module: nn.Module, decoder: nn.Module, head: nn.Module | None, prefix: str = ""
) -> Iterator[tuple[str, int]]:
    """Names and sizes of the parts that are neither in the decoder nor its head."""
    for name, child in module.named_children() if module is not decoder else ():
        inside = list(child.modules())
        if any(part is decoder for part in inside):
            yield from _beside(child, decoder, head, f"{prefix}{name}.")
        elif not any(part is head for part in inside) and (count := sum(p.numel() for p in child.parameters())):
            yield prefix + name, count


def _check_own_weights(model: nn.Module, name: str, modules: nn.ModuleList) -> None:
    """Raises: ModelError if two blocks share a parameter, or are to share it as soon as weights are loaded."""
    owners: dict[int, str] = {}
    inside = (
        f"{name}.{i}.{parameter_name}"
        for i, module in enumerate(modules)
        for parameter_name, _ in module.named_parameters()
    )
    pairs = {
        tuple(sorted(pair))
        for pair in getattr(model, "all_tied_weights_keys", {}).items()
        if all(n.startswith(f"{name}.") for n in pair)
    }
    for full_name in inside:
        first = owners.setdefault(id(model.get_parameter(full_name)), full_name)
        if first != full_name:
            pairs.add((first, full_name))
    if pairs:
        one, other = min(pairs)
        raise ModelError(
            f"{type(model).__name__}: {one} and {other} are one and the same weights ({len(pairs)} such pairs);"
            " autoprune prunes every block by itself and would prune them more than once, each time for another"
            " input. It can't prune this model"
        )


def _examine_block(index: int, name: str, module: nn.Module) -> BlockAnatomy:
    left_alone = routers(module)
    layers: list[Layer] = []
    for child_name, child in module.named_modules():
        if is_linear(child) and id(child) not in left_alone:
            layers.append(Layer(child_name, child))
        layers.extend(fused_experts(child_name, child))
    reached = {layer.parameter_name for layer in layers}
    unreached = tuple((n, p.numel()) for n, p in module.named_parameters() if n not in reached)
    return BlockAnatomy(index, name, module, tuple(layers), sum(p.numel() for p in module.parameters()), unreached)
