"""Any layer as one ``[out, in]`` matrix, and back: Linear and GPT-2's transposed Conv1D."""

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
    def transposed(self) -> bool:
        """Conv1D stores ``[in, out]``."""
        return isinstance(self.module, Conv1D)

    @property
    def parameter_name(self) -> str:
        """The weight's name relative to the block."""
        return f"{self.name}.weight"

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        """The weight as ``[out, in]``: a view, in the model's dtype."""
        weight = self.module.weight.data  # type: ignore[union-attr]
        return weight.T if self.transposed else weight  # type: ignore[return-value, operator]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        out, features = self.matrix.shape
        return out, features

    @property
    def count(self) -> int:
        """Number of weights."""
        return self.matrix.numel()

    def assign(self, matrix: Float[Tensor, "out in"]) -> None:
        """Gives the layer new weights ``[out, in]`` in its own dtype: the one place where a weight changes.

        The old tensor is let go, not overwritten, so that whoever holds it still has the dense weights.
        """
        weight = self.module.weight
        weight.data = (matrix.T if self.transposed else matrix).to(weight.dtype).contiguous()  # type: ignore[union-attr, operator, arg-type]


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a linear map that this file can present as a matrix."""
    return isinstance(module, (nn.Linear, Conv1D))
