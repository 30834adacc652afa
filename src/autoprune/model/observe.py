"""Runs a block and fills statistics: one for every input group, by forward hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.core.statistics import InputGram, InputNorm
from autoprune.errors import NumericsError
from autoprune.model.linear import Layer

ERROR_TOKENS = 256  # tokens, evenly spaced over the calibration data, on which layer errors are measured


@dataclass
class InputSample:
    """Every ``stride``-th token that enters a layer."""

    stride: int
    seen: int = 0
    parts: list[Float[Tensor, "tokens in"]] = field(default_factory=list)

    @classmethod
    def spread(cls, tokens: int) -> InputSample:
        """Nothing seen yet; about ``ERROR_TOKENS`` of ``tokens`` will be kept."""
        return cls(max(1, tokens // ERROR_TOKENS))

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        """Adds a batch of tokens."""
        first = -self.seen % self.stride
        self.parts.append(x[first :: self.stride].float())
        self.seen += x.shape[0]

    def relative_error(self, dense: Float[Tensor, "out in"], pruned: Float[Tensor, "out in"]) -> float:
        """``||(W - W') X|| / ||W X||`` over the sampled tokens; 0 where W X is 0."""
        x = torch.cat(self.parts).T
        whole = (dense.float() @ x).norm()
        lost = ((dense.float() - pruned.float()) @ x).norm()
        return float(lost / whole) if float(whole) else 0.0


@dataclass
class InputGroup:
    """Layers that are fed by one and the same tensor, and what was seen of it."""

    layers: list[Layer]
    sample: InputSample | None
    statistic: InputNorm | InputGram | None = None


class InputObserver:
    """Watches the inputs of layers while a block runs (use it as a context manager around the runs).

    Two layers share an input exactly when they receive the same storage in the same forward pass; the
    first to receive it speaks for the group, so that shared statistics are computed once.
    """

    def __init__(self, layers: Sequence[Layer], statistic: type[InputNorm] | type[InputGram] | None, tokens: int) -> None:
        self._layers, self._statistic = layers, statistic
        self._tokens = tokens
        self._leader: dict[str, InputGroup] = {}
        self._in_this_pass: dict[tuple[Any, ...], tuple[Tensor, InputGroup]] = {}
        self._handles: list[Any] = []
        self.groups: list[InputGroup] = []

    def __enter__(self) -> InputObserver:
        self._handles = [layer.module.register_forward_pre_hook(self._hook(layer)) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.next_pass()

    def next_pass(self) -> None:
        """Forgets the tensors of the last forward pass: their addresses may be used again."""
        self._in_this_pass.clear()

    def _hook(self, layer: Layer) -> Any:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            key = (x.data_ptr(), tuple(x.shape), x.stride(), x._version)
            known = self._in_this_pass.get(key)
            if layer.name not in self._leader:
                group = known[1] if known else self._new_group(x)
                group.layers.append(layer)
                self._leader[layer.name] = group
            group = self._leader[layer.name]
            if group.layers[0] is layer:
                self._in_this_pass[key] = (x, group)  # the reference keeps the address from being used again
                flat = x.detach().reshape(-1, x.shape[-1])
                group.sample.update(flat)
                if group.statistic is not None:
                    group.statistic.update(flat)

        return before

    def _new_group(self, x: Tensor) -> InputGroup:
        statistic = self._statistic.empty(x.shape[-1], x.device) if self._statistic else None
        group = InputGroup([], InputSample.spread(self._tokens), statistic)
        self.groups.append(group)
        return group


def check_finite(groups: Sequence[InputGroup], block: str) -> None:
    """Raises: NumericsError naming the first layer whose inputs hold NaN or infinity."""
    for group in groups:
        values = group.statistic
        numbers = values.squares if isinstance(values, InputNorm) else values.gram.diagonal() if isinstance(values, InputGram) else torch.cat(group.sample.parts)
        if not bool(torch.isfinite(numbers).all()):
            raise NumericsError(
                f"the inputs of {block}.{group.layers[0].name} hold NaN or infinity (or their squares overflow); "
                "try --dtype float32 (float16 overflows easily), or check the model and the calibration data"
            )
