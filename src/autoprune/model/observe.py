"""Fills statistics while a block runs: one for every input group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.statistics import CrossGram, InputGram, InputNorm, summed, tensors_of
from autoprune.errors import NumericsError
from autoprune.model.layers import Expert, Layer
from autoprune.model.watch import Use, Watch

ERROR_TOKENS = 256  # tokens, evenly spaced over the calibration data, on which layer errors are measured
Kind = type[InputNorm] | type[InputGram] | type[CrossGram]
InputStatistic = InputNorm | InputGram | CrossGram
FEW_TOKENS = 32  # an expert that saw fewer has no statistic of its own


@dataclass
class InputSample:
    """Every ``stride``-th token that enters a layer."""

    stride: int
    seen: int = 0
    parts: list[Float[Tensor, "tokens in"]] = field(default_factory=list)
    before: int = 0  # tokens on earlier ranks; 0 for experts, of whose tokens nobody knows beforehand

    @classmethod
    def spread(cls, tokens: int, before: int = 0) -> InputSample:
        """Nothing seen yet; about ``ERROR_TOKENS`` of ``tokens`` will be kept."""
        return cls(max(1, tokens // ERROR_TOKENS), before=before)

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        """Adds a batch of tokens."""
        first = -(self.before + self.seen) % self.stride
        self.parts.append(x[first :: self.stride].to(torch.float32, copy=True))  # a view would keep all of x alive
        self.seen += x.shape[0]

    def relative_error(self, dense: Float[Tensor, "out in"], pruned: Float[Tensor, "out in"]) -> float | None:
        """``||(W - W') X|| / ||W X||`` over the sampled tokens; 0 where W X is 0, None if no token was sampled."""
        x = torch.cat(self.parts).T
        if not x.shape[1]:
            return None
        whole = (dense.float() @ x).norm()
        lost = ((dense.float() - pruned.float()) @ x).norm()
        return float(lost / whole) if float(whole) else 0.0


@dataclass
class InputGroup:
    """Layers that are fed by one and the same tensor, and what was seen of it."""

    layers: list[Layer]
    sample: InputSample | None
    statistics: dict[Kind, InputStatistic] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        layers: list[Layer],
        kinds: Sequence[Kind],
        x: Float[Tensor, "*tokens in"],
        tokens: int,
        before: int = 0,
    ) -> InputGroup:
        """Nothing seen yet of layers that are fed by tensors like ``x``, out of ``tokens`` tokens in all."""
        statistics = {kind: kind.empty(x.shape[-1], x.device) for kind in kinds}
        return cls(layers, InputSample.spread(tokens, before), statistics)

    def update(self, x: Float[Tensor, "*tokens in"]) -> None:
        """Adds a batch of tokens; what needs the dense stream beside them is added by ``observe_pairs``."""
        flat = x.reshape(-1, x.shape[-1])
        if self.sample is not None:
            self.sample.update(flat)
        for statistic in self.statistics.values():
            if not isinstance(statistic, CrossGram):
                statistic.update(flat)

    @property
    def tokens(self) -> int:
        """Number of tokens seen."""
        return self.sample.seen if self.sample else 0


class InputObserver:
    """Watches the inputs of layers while a block runs (use it as a context manager around the runs).

    Two layers share an input exactly when they receive the same storage in the same forward pass; the
    first to receive it speaks for the group, so that shared statistics are computed once.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        kinds: Sequence[Kind],
        tokens: int,
        before: int = 0,
    ) -> None:
        self._kinds = kinds
        self._tokens, self._before = tokens, before
        self._leader: dict[str, InputGroup] = {}
        self._in_this_pass: dict[tuple[Any, ...], tuple[Tensor, InputGroup]] = {}
        self._layers = layers
        self.groups: list[InputGroup] = []

    def __enter__(self) -> InputObserver:
        self._watch = Watch(self._layers, self._seen)
        self._watch.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)
        # it refers to this observer: together they would keep statistics and weights until Python looks for such
        # circles
        del self._watch
        self.next_pass()

    def next_pass(self) -> None:
        """Forgets the tensors of the last forward pass: their addresses may be used again."""
        self._in_this_pass.clear()

    def _seen(self, uses: list[Use], result: Tensor) -> Tensor:
        for use in uses:
            self._update(use.layer, use.x.detach())
        return result

    def _update(self, layer: Layer, x: Tensor) -> None:
        key = (x.data_ptr(), tuple(x.shape), x.stride(), x._version)
        known = self._in_this_pass.get(key)
        if layer.name not in self._leader:
            group = known[1] if known else self._new_group(x, 0 if isinstance(layer, Expert) else self._before)
            group.layers.append(layer)
            self._leader[layer.name] = group
        group = self._leader[layer.name]
        if group.layers[0] is layer:
            self._in_this_pass[key] = (x, group)  # the reference keeps the address from being used again
            group.update(x)

    def _new_group(self, x: Tensor, before: int) -> InputGroup:
        group = InputGroup.empty([], self._kinds, x, self._tokens, before)
        self.groups.append(group)
        return group


def settle_experts(groups: Sequence[InputGroup], layers: Sequence[Layer]) -> list[InputGroup]:
    """The groups of all layers, in the order of the layers; experts that saw too few tokens borrow what all of them
    saw.

    An expert's statistic over fewer than ``FEW_TOKENS`` tokens says little, and over none nothing: it gets the sum
    over all experts of its fused parameter, which is the statistic of all tokens that were routed to any of them.
    """
    by_layer = {layer.name: group for group in groups for layer in group.layers}
    settled: dict[int, InputGroup] = {}
    for layer in layers:
        group = by_layer.get(layer.name)
        if isinstance(layer, Expert) and (group is None or group.tokens < FEW_TOKENS):
            peers = [
                by_layer[la.name] for la in layers if la.parameter_name == layer.parameter_name and la.name in by_layer
            ]
            group = _borrowed(layer, group.tokens if group else 0, peers) if peers else None
        if group is not None:
            settled.setdefault(id(group), group)
    return list(settled.values())


def _borrowed(layer: Expert, seen: int, peers: Sequence[InputGroup]) -> InputGroup:
    samples = [peer.sample for peer in peers if peer.sample]
    together = InputSample(1, sum(s.seen for s in samples), [part for s in samples for part in s.parts])
    statistics: dict[Kind, InputStatistic] = {}
    for kind in peers[0].statistics:
        statistics[kind] = summed([peer.statistics[kind] for peer in peers])
    return InputGroup([layer], together, statistics, {"fallback": "all tokens", "tokens": seen})


def check_finite(groups: Sequence[InputGroup], block: str) -> None:
    """Raises: NumericsError naming the first layer whose inputs hold NaN or infinity."""
    for group in groups:
        numbers = [tensor for statistic in group.statistics.values() for tensor in tensors_of(statistic)]
        for tensor in numbers or (group.sample.parts if group.sample else []):
            if bool(torch.isfinite(tensor).all()):
                continue
            raise NumericsError(
                f"the inputs of {block}.{group.layers[0].name} hold NaN or infinity (or their squares overflow); "
                "try --dtype float32 (float16 overflows easily), or check the model and the calibration data"
            )
