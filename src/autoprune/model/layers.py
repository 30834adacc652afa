"""Any layer as one ``[out, in]`` matrix, and back: Linear, GPT-2's transposed Conv1D, one expert of a fused
parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Layer:
    """One linear map inside a block. ``name`` is relative to the block, e.g. ``self_attn.q_proj``."""

    name: str
    module: nn.Module

    @property
    def parameter_name(self) -> str:
        """The name of the parameter that holds the weight, relative to the block."""
        return f"{self.name}.weight"

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that holds the weight."""
        return self.module.weight  # type: ignore[return-value]

    def of(self, tensor: Tensor) -> Tensor:
        """The layer's ``[out, in]`` matrix as a view of a tensor that is laid out as the parameter is."""
        return tensor.T if isinstance(self.module, Conv1D) else tensor

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        """The weight as ``[out, in]``: a view, in the model's dtype."""
        return self.of(self.parameter.data)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        out, features = self.matrix.shape
        return out, features

    @property
    def count(self) -> int:
        """Number of weights."""
        return self.matrix.numel()

    def assign(self, matrix: Float[Tensor, "out in"], *, in_place: bool = False) -> None:
        """Gives the layer new weights ``[out, in]`` in its own dtype: the one place where a weight changes.

        The old tensor is let go, so that whoever holds it still has the dense weights; or it is overwritten
        ``in_place``.
        """
        weight = self.parameter
        if in_place:
            self.matrix.copy_(matrix)
        else:
            weight.data = self.of(matrix).to(weight.dtype).contiguous()  # to transpose twice is not to transpose


@dataclass(frozen=True)
class Expert(Layer):
    """One expert of a fused parameter ``[experts, out, in]``, or ``[experts, in, out]`` if ``transposed``."""

    owner: str  # name of the module that owns the parameter, relative to the block
    attribute: str  # the parameter's name in it
    index: int
    transposed: bool

    @property
    def parameter_name(self) -> str:
        """The name of the fused parameter, relative to the block."""
        return join(self.owner, self.attribute)

    @property
    def parameter(self) -> nn.Parameter:
        """The fused parameter."""
        return getattr(self.module, self.attribute)

    def of(self, tensor: Tensor) -> Tensor:
        """This expert's ``[out, in]`` matrix as a view of a tensor that is laid out as the fused parameter is."""
        return tensor[self.index].T if self.transposed else tensor[self.index]

    def assign(self, matrix: Float[Tensor, "out in"], *, in_place: bool = True) -> None:
        """Overwrites this expert's part of the fused parameter (see ``hold_originals``), there being no other way."""
        self.matrix.copy_(matrix)


def hold_originals(layers: tuple[Layer, ...], in_place: bool = False) -> dict[str, Tensor]:
    """By parameter name: the weights as they are now, which later calls of ``assign`` leave alone.

    Fused parameters, and all that will be assigned ``in_place``, are overwritten: the model gets a copy and the
    original is kept.
    """
    originals: dict[str, Tensor] = {}
    for layer in layers:
        if layer.parameter_name not in originals:
            originals[layer.parameter_name] = layer.parameter.data
            if in_place or isinstance(layer, Expert):
                layer.parameter.data = layer.parameter.data.clone()
    return originals


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear map with one weight matrix.

    A grouped one is not: its matrix is several, each of which sees a part of the input.
    """
    return isinstance(module, (nn.Linear, Conv1D)) and not hasattr(module, "n_groups")


def join(*parts: str) -> str:
    """Parts of a dotted name; empty ones are left out."""
    return ".".join(part for part in parts if part)
