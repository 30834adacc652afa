"""Sees every product in which a layer's weight takes part: through the layer's module, a slice of a fused parameter,
or bare.

Forward hooks would miss experts, which are slices, and weights that a block multiplies without calling their
module (Mamba's ``dt_proj``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from autoprune.errors import ModelError
from autoprune.model.layers import Expert, Layer

# Products and the names of their two factors, with their places among the arguments.
FACTORS = {
    "linear": ((0, "input"), (1, "weight")),
    "matmul": ((0, "input"), (1, "other")),
    "mm": ((0, "input"), (1, "mat2")),
    "bmm": ((0, "input"), (1, "mat2")),
    "addmm": ((1, "mat1"), (2, "mat2")),
    "baddbmm": ((1, "batch1"), (2, "batch2")),
}


@dataclass(frozen=True)
class Use:
    """A layer's part in one product: its input ``[…, in]``, and what takes its ``[…, out]`` out of the product's
    result.
    """

    layer: Layer
    x: Tensor
    part: Callable[[Tensor], Tensor]


Coming = Callable[[list[Use]], None]  # the layers' uses, before their product is taken
Seen = Callable[
    [list[Use], Tensor], Tensor
]  # the layers' uses and the product -> what the block shall get in its place


class Watch(TorchFunctionMode):
    """While it lasts (use it as a context manager), ``coming`` and ``seen`` are told of the products of these layers'
    present weights.

    Between the two a weight may be overwritten in place; the product is taken of what it is then.
    """

    def __init__(self, layers: Sequence[Layer], seen: Seen | None = None, coming: Coming | None = None) -> None:
        super().__init__()
        self._layers, self._seen, self._coming = layers, seen, coming
        self._by_address: dict[int, list[tuple[Layer, Tensor]]] = {}
        self._fused: set[int] = set()

    def __enter__(self) -> Watch:
        self._by_address, self._fused = {}, set()
        for layer in self._layers:
            matrix = layer.matrix
            self._by_address.setdefault(matrix.data_ptr(), []).append((layer, matrix))
            if isinstance(layer, Expert):
                self._fused.add(matrix.untyped_storage().data_ptr())
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        factors = FACTORS.get(getattr(func, "__name__", ""))
        uses: list[Use] = []
        if factors is not None:
            left, right = (args[place] if place < len(args) else kwargs.get(name) for place, name in factors)
            if isinstance(left, Tensor) and isinstance(right, Tensor) and right.dim() > 1:
                uses = self._uses(left, right.mT if func.__name__ == "linear" else right)
        if uses and self._coming:
            self._coming(uses)
        result = func(*args, **kwargs)
        return self._seen(uses, result) if uses and self._seen else result

    def _uses(self, left: Tensor, right: Tensor) -> list[Use]:
        """The layers in ``left @ right``: usually ``x @ W^T``, sometimes ``W @ x^T``, or a batch of experts at
        once.
        """
        if right.dim() == 2 and (layer := self._find(right.mT)):
            return [Use(layer, left, lambda y: y)]
        if left.dim() == 2 and (layer := self._find(left)):
            return [Use(layer, right.mT, lambda y: y.mT)]
        if (
            right.dim() == left.dim() == 3
            and len(right) == len(left)
            and right.untyped_storage().data_ptr() in self._fused
        ):
            return [
                use
                for i, (x, weight) in enumerate(zip(left, right, strict=True))
                if (use := self._routed(i, x, weight))
            ]
        return []

    def _routed(self, index: int, x: Tensor, weight: Tensor) -> Use | None:
        """One expert of a batch: rows of zeros are tokens that went elsewhere."""
        layer = self._find(weight.mT)
        rows = x.detach().any(-1).nonzero()[:, 0]
        return Use(layer, x[rows], lambda y: y[index][rows]) if layer else None

    def _find(self, matrix: Tensor) -> Layer | None:
        """The layer whose weight is this very ``[out, in]`` view.

        Raises: ModelError if it is used the wrong way round.
        """
        for layer, known in self._by_address.get(matrix.data_ptr(), ()):
            if matrix.shape == known.shape and matrix.stride() == known.stride():
                return layer
            if isinstance(layer, Expert) and matrix.shape == known.T.shape and matrix.stride() == known.T.stride():
                raise ModelError(
                    f"{layer.parameter_name}: its experts are used as {tuple(matrix.shape)} (out, in), but were taken"
                    f" for {tuple(known.shape)}; leave them dense with --ignore '*.{layer.attribute}' and"
                    " --allow_partial, and please report the model"
                )
        return None
