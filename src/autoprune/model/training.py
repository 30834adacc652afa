"""A block whose kept weights, norms and biases are trained towards the dense block's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from autoprune.core.problem import LayerSolution
from autoprune.errors import ModelError, RecipeError
from autoprune.events import Progress
from autoprune.model.calls import PROBE_TOKENS
from autoprune.model.experts import eager_experts
from autoprune.model.precision import computing_in
from autoprune.model.stream import Place
from autoprune.model.walk import Store, prepare_inputs, walk

if TYPE_CHECKING:
    from autoprune.model.block import Block


class BlockTraining:
    """Runs the block in a chosen precision with given float32 values, and gives their gradients."""

    def __init__(self, block: Block, compute_dtype: str, by_token: bool) -> None:
        self._block, self._by_token = block, by_token
        layers = {layer.parameter_name for layer in block.layers}
        self._parameters = {
            name: p for name, p in block.module.named_parameters() if name in layers or is_vector(name, p)
        }
        chosen = {layer.name for layer in block.layers}
        self._left = [la for la in block.anatomy.layers if la.parameter_name in layers and la.name not in chosen]
        self._own = {name: (p, p.data, p.requires_grad) for name, p in block.module.named_parameters()}
        # Training gives the parameters other tensors, so these stay as they are.
        self.values: Mapping[str, Tensor] = {name: p.detach() for name, p in self._parameters.items()}
        self.patterns = _patterns(block, self._parameters)
        self.fitted = block.inputs.fitted
        runs = next(iter(self.values.values())).dtype
        try:
            self._begin(precision(compute_dtype, block.module, block.inputs.place.device))
            if self._dtype is not runs and (reason := hindrance(lambda: self._loss(0))):
                self._begin(settled(compute_dtype, runs, reason))
        except BaseException:
            self.restore()
            raise

    def _begin(self, dtype: torch.dtype) -> None:
        """The block's parameters are copies in ``dtype``."""
        self._dtype = dtype
        for name, (p, data, _) in self._own.items():
            p.requires_grad_(name in self._parameters)
            p.data = data.to(dtype)

    def gradients(self, values: Mapping[str, Tensor], i: int) -> Mapping[str, Tensor]:
        """Those of the relative output error on micro-batch ``i``."""
        self._put(values)
        with torch.enable_grad():
            self._loss(i).backward()
        for layer in self._left:  # experts that are ignored, inside of a parameter whose others are trained
            if (grad := layer.parameter.grad) is not None:
                layer.of(grad).zero_()
        return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in self._parameters.items()}

    @torch.no_grad()
    def judge(self, values: Mapping[str, Tensor]) -> float:
        """The mean of the held-out micro-batches' losses."""
        self._put(values)
        judged = self._block.inputs.judged
        return sum(float(self._loss(i)) for i in judged) / max(1, len(judged))

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tells whoever watches."""
        self._block.emit(Progress(self._block.index, self._block.blocks, phase, done, total))

    def restore(self) -> None:
        """The block's own values, bit for bit."""
        for parameter, data, trained in self._own.values():
            parameter.data, parameter.grad = data, None
            parameter.requires_grad_(trained)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, parameter.grad = values[name].to(self._dtype), None

    def _loss(self, i: int) -> Tensor:
        block = self._block
        assert block.stream is not None and block.dense_output is not None, "the step's needs name a dense stream"
        wanted = block.dense_output[i].float()
        result = block.run(i, block.stream[i].to(self._dtype)).float()
        lost, whole = (result - wanted).square(), wanted.square()
        if self._by_token:
            return (lost.sum(-1) / whole.sum(-1).clamp(min=torch.finfo(torch.float32).tiny)).mean()
        return lost.sum() / whole.sum().clamp(min=torch.finfo(torch.float32).tiny)


def is_vector(name: str, parameter: Tensor) -> bool:
    """Norms and biases; matrices that are no layer to prune stay as they are."""
    return parameter.dim() == 1 and parameter.is_floating_point()


def _patterns(block: Block, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By parameter: where values are kept, laid out as the parameter is."""
    patterns: dict[str, Tensor] = {}
    for layer in block.layers:
        solution: LayerSolution | None = block.solutions.get(layer.name)
        if solution is None:
            continue
        name = layer.parameter_name
        whole = patterns.setdefault(name, torch.ones_like(parameters[name], dtype=torch.bool))
        layer.of(whole).copy_(solution.keep & (layer.matrix != 0))
    return patterns


@torch.no_grad()
def hindrance(run: Callable[[], object]) -> str | None:
    """What torch says if a model does not run in a precision, as where tables of its own are in another."""
    try:
        run()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ModelError) as error:
        cause = error.__cause__ or error
        return (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return None


def settled(word: str, runs: torch.dtype, reason: str) -> torch.dtype:
    """The model's own precision, where it does not run in the one that the machine is quickest in.

    Raises: RecipeError if that one was asked for by name.
    """
    if word == "auto":
        return runs
    own = str(runs).removeprefix("torch.")
    raise RecipeError(
        f"the model does not run in {word} ({reason}); train it in {own} (--reconstruct_dtype, --distill_dtype)"
    )


def check_precision(store: Store, word: str, ids: Int[Tensor, "samples tokens"]) -> None:
    """Runs the model, block after block, on a few tokens in a precision that is asked for by name.

    Raises: RecipeError if it does not run in it, which would only be seen when it is trained.
    """
    model, runs = store.anatomy.model, next(store.anatomy.model.parameters()).dtype
    wanted = precision(word, model, store.device)

    def run() -> None:
        with computing_in(model, wanted), eager_experts(model):
            inputs, stream = prepare_inputs(store, ids[:1, :PROBE_TOKENS], 1, Place("device", store.device))
            for block in walk(store):
                with computing_in(block.module, wanted):
                    stream[0] = inputs.calls.of(0, block.index)(block.module, stream[0])

    if word != "auto" and wanted is not runs and (reason := hindrance(run)):
        settled(word, runs, reason)


def precision(word: str, module: torch.nn.Module, device: torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies in it; else float32."""
    if word != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[word]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    quick = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if quick else torch.float32
