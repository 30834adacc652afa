"""A whole pruned or smaller model whose kept weights, norms and biases learn the dense model's predictions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor, nn

from autoprune.core.divergence import mean_divergence
from autoprune.events import Emit, Work
from autoprune.model.anatomy import Anatomy
from autoprune.model.calls import PROBE_TOKENS, Mirror, ending_in
from autoprune.model.layers import Layer
from autoprune.model.stream import Stream
from autoprune.model.training import hindrance, is_vector, precision, settled
from autoprune.model.walk import Inputs

Values = Mapping[str, Tensor]


class WholeModel(Protocol):
    """A store whose blocks are all loaded."""

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        ...

    @property
    def anatomy(self) -> Anatomy:
        """Its blocks."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        ...

    def logits(self, ids: Tensor) -> Tensor:
        """Runs the whole model."""
        ...


@dataclass(frozen=True)
class LastStates:
    """What the dense model's last block makes of the samples; norm and head, which both models have, make its
    predictions of them.
    """

    stream: Stream
    mirror: Mirror


@dataclass(frozen=True)
class TwoModels:
    """The blocks' parameters by their full names, as the model runs with them: dense, and pruned.

    Where the dense model has other blocks, its last hidden states stand for them.
    """

    dense: Values | LastStates
    pruned: Values
    layers: Collection[str]  # names of the parameters that are trained and have a pattern
    left: Sequence[tuple[str, Layer]] = ()  # experts inside of them that were not, with the parameter's name
    still: Collection[str] = ()  # names of the parameters of blocks that are left alone as a whole


class ModelTraining:
    """Runs the whole model in a chosen precision with given float32 values, and gives their gradients.

    While it lasts the model's parameters are copies; ``restore`` puts back its own. A model that does not run in
    the precision in which the machine is quickest runs in its own.
    Raises: RecipeError if it does not run in one that was asked for by name.
    """

    def __init__(
        self,
        store: WholeModel,
        ids: Int[Tensor, "samples tokens"],
        inputs: Inputs,
        models: TwoModels,
        compute_dtype: str,
        emit: Emit,
    ) -> None:
        self._store, self._emit, self._batches = store, emit, ids.split(inputs.batch)
        self.fitted, self._judged = inputs.fitted, inputs.judged
        parameters = dict(store.model.named_parameters())
        self._trained = {
            name: parameters[name]
            for name in models.pruned
            if name not in models.still and (name in models.layers or is_vector(name, parameters[name]))
        }
        self.values: Values = {name: models.pruned[name].detach().clone() for name in self._trained}
        self.patterns: Values = {name: value != 0 for name, value in self.values.items() if name in models.layers}
        self._left = [(name, layer) for name, layer in models.left if name in self._trained]
        self._own = {name: (p, p.data, p.requires_grad) for name, p in parameters.items()}
        self._runs = next(iter(self._trained.values())).dtype
        try:
            self._begin(models, precision(compute_dtype, store.model, store.device))
            if self._dtype is not self._runs and (reason := hindrance(self._try)):
                self._begin(models, settled(compute_dtype, self._runs, reason))
        except BaseException:
            self.restore()
            raise

    def _begin(self, models: TwoModels, dtype: torch.dtype) -> None:
        """The model's parameters are copies in ``dtype``."""
        self._dtype = dtype
        for name, (p, data, _) in self._own.items():
            p.requires_grad_(name in self._trained)
            p.data = models.pruned.get(name, data).to(dtype)
        self._dense: Values | LastStates = models.dense
        if not isinstance(models.dense, LastStates):
            self._dense = {name: models.dense[name].to(dtype) for name in self._trained}

    def _try(self) -> Tensor:
        return self._store.logits(self._batches[0][:1, :PROBE_TOKENS])

    def gradients(self, values: Values, i: int) -> Values:
        """Those of the mean divergence on micro-batch ``i``."""
        wanted = self._wanted(i)
        self._put(values)
        with torch.enable_grad():
            mean_divergence(wanted, self._store.logits(self._batches[i])).backward()
        for name, layer in self._left:
            if (grad := self._trained[name].grad) is not None:
                layer.of(grad).zero_()  # so Adam leaves it as it is, bit for bit
        return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in self._trained.items()}

    @torch.no_grad()
    def judge(self, values: Values) -> float:
        """The mean divergence on the held-out micro-batches."""
        losses = [float(mean_divergence(self._wanted(i), self._logits(values, i))) for i in self._judged]
        return sum(losses) / max(1, len(losses))

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tells whoever watches."""
        self._emit(Work(phase, done, total))

    def restore(self) -> None:
        """The model's own values."""
        for p, data, flag in self._own.values():
            p.data, p.grad = data, None
            p.requires_grad_(flag)

    @torch.no_grad()
    def _wanted(self, i: int) -> Tensor:
        """The dense model's logits."""
        if not isinstance(self._dense, LastStates):
            return self._logits(self._dense, i)
        hidden = self._dense.stream[i]
        hidden = hidden.to(self._dtype) if hidden.dtype is self._runs else hidden
        with ending_in([block.module for block in self._store.anatomy.blocks], self._dense.mirror, hidden):
            return self._store.logits(self._batches[i])

    @torch.no_grad()
    def _logits(self, values: Values, i: int) -> Tensor:
        self._put(values)
        return self._store.logits(self._batches[i])

    def _put(self, values: Values) -> None:
        for name, p in self._trained.items():
            p.data, p.grad = values[name].to(self._dtype), None
