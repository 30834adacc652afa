"""ALPS and ADMM against SparseGPT on every layer of the golden models: the output error is never above it.

Compared alike: SparseGPT chooses over the rows of a layer, so where ALPS and ADMM compare per row, its sweep is made
to do so too. Per row they can end above SparseGPT per layer where rows differ much in what they matter (up to 2.5 %
on these models, in the queries, keys and values of the first block of ``llama-tiny``).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from autoprune.core.admm import admm, admm_curvature
from autoprune.core.alps import alps
from autoprune.core.curvature import inverse_factor
from autoprune.core.reconstruction import sweep
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.core.spectrum import spectrum

GOLDENS = Path(__file__).resolve().parents[1] / "parity" / "goldens"
SHARED = Path(__file__).resolve().parents[3] / "shared"  # beside the checkout: a trained model, where it is there
TRAINED = "stories260K"
TARGETS: list[Target] = [Unstructured(0.5), Unstructured(0.7), SemiStructured(2, 4), SemiStructured(4, 8)]


@cache
def _layers(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and Gram of every layer of the blocks, on the recorded calibration tokens."""
    place = SHARED / "realdata" / TRAINED if name == TRAINED else GOLDENS / name / "model"
    recorded = (SHARED / "goldens" if name == TRAINED else GOLDENS) / name
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in n}
    grams: dict[str, Tensor] = {}

    def observe(layer: str, x: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1])
        grams[layer] = x.T @ x

    for layer, module in linear.items():
        module.register_forward_pre_hook(lambda _, inputs, layer=layer: observe(layer, inputs[0]))
    with torch.no_grad():
        model(load_file(recorded / "calibration.safetensors")["input_ids"])
    return {layer: (module.weight.detach(), grams[layer]) for layer, module in linear.items()}


def _error(new: Tensor, weight: Tensor, gram: Tensor) -> float:
    off = (weight - new).double()
    return float(((off @ gram.double()) * off).sum())


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("name", ["llama-tiny", "opt-tiny", TRAINED])
def test_never_above_sparsegpt(name: str, per_row: bool, target: Target) -> None:
    if name == TRAINED and (target == SemiStructured(4, 8) or not (SHARED / "goldens" / name).is_dir()):
        pytest.skip("the trained model is not here, or its width is not a multiple of 8")
    for layer, (weight, gram) in _layers(name).items():
        rows = [1] * len(weight) if per_row else [len(weight)]
        swept, _ = sweep(weight, inverse_factor(gram, 0.01), target, 128, rows)
        limit = _error(swept, weight, gram)
        searched = alps(weight, spectrum(gram), target, per_row=per_row)
        assert _error(searched.weight, weight, gram) <= limit, layer
        gradual, _ = admm(weight, admm_curvature(gram), target, per_row=per_row)
        assert _error(gradual, weight, gram) <= limit, layer


def test_all_layers_are_here() -> None:
    assert len(_layers("llama-tiny")) == 3 * 7 and len(_layers("opt-tiny")) == 3 * 6
