"""Folds a rotation of the residual stream into the weights: the model computes the same function in another basis.

With hidden states as rows, ``h`` becomes ``h R``. What reads them behind an RMSNorm with weight gamma becomes
``W diag(gamma) R`` and the norm's weight one (an RMSNorm divides by the length, which no rotation changes); what adds
to them becomes ``R^T W``. The idea is SliceGPT's (arXiv 2401.15024, section 3). ``model/seams.py`` finds where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.core.rotation import InputTerm, OutputTerm, RotationTerm
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.layers import Expert, Layer, is_linear

_ROWS = 4096  # of a vocabulary matrix, turned at once: the whole in float64 would be large


@dataclass(frozen=True)
class Norm:
    """An RMSNorm that reads the residual stream. It scales by ``weight + 1 - neutral``; None: it has no weight."""

    name: str  # relative to the block; in Ends, to the model
    neutral: float | None = 1.0  # the weight with which it scales by one: 1, or 0 where the norm adds one itself

    def scale(self, module: nn.Module) -> Float[Tensor, " width"] | None:
        """What the norm multiplies by, in float64; None if by nothing."""
        return (
            None
            if self.neutral is None
            else module.get_submodule(self.name).get_parameter("weight").data.double() + (1 - self.neutral)
        )

    def clear(self, module: nn.Module) -> None:
        """From now on it scales by one."""
        if self.neutral is not None:
            weight = module.get_submodule(self.name).get_parameter("weight")
            weight.data = torch.full_like(weight.data, self.neutral)


@dataclass(frozen=True)
class Seams:
    """Where a block touches the residual stream: names relative to the block."""

    readers: Mapping[str, Norm]  # layers and routers that read it, and the norm between
    writers: tuple[str, ...]  # layers whose output is added to it


@dataclass(frozen=True)
class Ends:
    """What stands before the first block and behind the last one."""

    norm: Norm
    tied: bool  # embedding and head are one matrix, until they are folded


@dataclass(frozen=True)
class Fold:
    """All that a rotation changes in a model."""

    width: int
    blocks: tuple[Seams, ...]
    ends: Ends
    notices: tuple[str, ...]  # what the user should know


def matrices(block: BlockAnatomy) -> dict[str, Layer]:
    """By name: the block's layers, and whatever else in it holds a matrix called ``weight``, such as a router."""
    found = {layer.name: layer for layer in block.layers}
    for name, module in block.module.named_modules():
        weight = module._parameters.get("weight")
        if name and name not in found and weight is not None and weight.dim() == 2:
            found[name] = Layer(name, module)
    return found


def fold_block(block: BlockAnatomy, seams: Seams, rotation: Float[Tensor, "width width"]) -> None:
    """Turns the block's weights in place, computed in float64 and rounded once; the block must hold them."""
    layers = matrices(block)
    for name, norm in seams.readers.items():
        weight = layers[name].matrix.double()
        scale = norm.scale(block.module)
        layers[name].assign((weight if scale is None else weight * scale) @ rotation.to(weight))
    for norm in set(seams.readers.values()):
        norm.clear(block.module)
    for name in seams.writers:
        weight = layers[name].matrix.double()
        layers[name].assign(rotation.T.to(weight) @ weight)
        if (bias := bias_of(layers[name])) is not None:
            bias.copy_(bias.double() @ rotation.to(weight))


def rotation_terms(
    block: BlockAnatomy,
    seams: Seams,
    grams: Mapping[str, Float[Tensor, "in in"]],
    squares: Mapping[str, Float[Tensor, " in"]],
) -> list[RotationTerm]:
    """What the rotation is learned from, of a block whose norms scale by one: fold the identity in, then observe.

    ``grams`` are those of what enters readers, ``squares`` the diagonals of what enters writers, by layer. Layers that
    share a Gram (the same tensor) make one term; those without, such as routers, which stay dense, make none.
    """
    layers = matrices(block)
    sharing: dict[int, list[str]] = {}
    for name in (name for name in seams.readers if name in grams):
        sharing.setdefault(id(grams[name]), []).append(name)
    terms: list[RotationTerm] = [
        InputTerm(torch.cat([layers[name].matrix.float() for name in names]), grams[names[0]])
        for names in sharing.values()
    ]
    return terms + [
        OutputTerm(layers[name].matrix.float(), squares[name]) for name in seams.writers if name in squares
    ]


def folded_names(block: BlockAnatomy, seams: Seams) -> tuple[str, ...]:
    """The block's parameters that ``fold_block`` changes: what a checkpoint's writer has to write anew."""
    layers = matrices(block)
    names = [layers[name].parameter_name for name in (*seams.readers, *seams.writers)]
    names += [f"{norm.name}.weight" for norm in seams.readers.values() if norm.neutral is not None]
    places = {id(parameter): name for name, parameter in block.module.named_parameters()}
    names += [places[id(owner)] for name in seams.writers if (owner := _bias_parameter(layers[name])) is not None]
    return tuple(dict.fromkeys(names))


def fold_ends(model: Any, ends: Ends, rotation: Float[Tensor, "width width"]) -> None:
    """Turns embedding and head in place; one matrix becomes two, and the configuration then says so."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    scale = ends.norm.scale(model)
    head.weight = nn.Parameter(_turned(head.weight.data, scale, rotation), requires_grad=head.weight.requires_grad)
    embedding.weight = nn.Parameter(
        _turned(embedding.weight.data, None, rotation), requires_grad=embedding.weight.requires_grad
    )
    ends.norm.clear(model)
    if ends.tied:
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def bias_of(layer: Layer) -> Float[Tensor, " out"] | None:
    """The bias that is added to the layer's product, as a view; of an expert, its part of the fused bias."""
    parameter = _bias_parameter(layer)
    return None if parameter is None else parameter.data[layer.index] if isinstance(layer, Expert) else parameter.data


def _bias_parameter(layer: Layer) -> nn.Parameter | None:
    if isinstance(layer, Expert):
        return layer.module._parameters.get(f"{layer.attribute}_bias")
    return layer.module._parameters.get("bias") if is_linear(layer.module) else None


def _turned(
    matrix: Float[Tensor, "rows width"], scale: Float[Tensor, " width"] | None, rotation: Float[Tensor, "width width"]
) -> Tensor:
    """``matrix diag(scale) R`` in the matrix's own precision, a slice of the rows at a time."""
    result = torch.empty_like(matrix)
    for rows, turned in zip(matrix.split(_ROWS), result.split(_ROWS), strict=True):
        wide = rows.double() if scale is None else rows.double() * scale.to(rows.device)
        turned.copy_(wide @ rotation.to(wide))
    return result
