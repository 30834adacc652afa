"""Precision: the blocks may run in another than the checkpoint is stored in; what is stored keeps its dtype and its
bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from end_to_end.conftest import Run
from end_to_end.tiny import change_weights, is_pruned_layer, same_bits, save_tiny, tensors, tiny_model

STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BARBER: dict[str, Any] = {"prune_barber": True, "prune_granularity": "layer", "threshold": 0.3}


def survivors_of(before: Tensor, after: Tensor) -> Tensor:
    """The original with zeros where the result has them."""
    return before.where(after != 0, torch.zeros((), dtype=before.dtype))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("method", "runs_in"),
    [*((m, d) for m in ("magnitude", "wanda") for d in ("auto", *STORED)), ("barber", "auto"), ("barber", "float32")],
)
def test_survivors_keep_their_bits(run: Run, tmp_path: Path, stored: str, method: str, runs_in: str) -> None:
    """LLM-Barber gives back the weights that it ran on, so these must not be rounded first."""
    options = BARBER if method == "barber" else {"prune_method": method}
    model = save_tiny(tmp_path / "model", tiny_model(dtype=STORED[stored]))
    run(model, save_model=tmp_path / "out", dtype=runs_in, **options)
    before, after = tensors(model), tensors(tmp_path / "out")
    zeros = 0
    for name, tensor in after.items():
        assert tensor.dtype == STORED[stored], name
        assert same_bits(survivors_of(before[name], tensor) if is_pruned_layer(name) else before[name], tensor), name
        zeros += int((tensor == 0).sum()) if is_pruned_layer(name) else 0
    assert zeros == sum(t.numel() for name, t in after.items() if is_pruned_layer(name)) // 2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == STORED[stored]


@pytest.mark.parametrize("stored", STORED)
def test_sparsegpt_stores_its_new_weights_in_the_models_dtype(run: Run, tmp_path: Path, stored: str) -> None:
    model = save_tiny(tmp_path / "model", tiny_model(dtype=STORED[stored]))
    run(model, save_model=tmp_path / "out", prune_method="sparsegpt")
    before, after = tensors(model), tensors(tmp_path / "out")
    for name in filter(is_pruned_layer, after):
        assert after[name].dtype == STORED[stored]
        assert int((after[name] == 0).sum()) * 2 == after[name].numel()
        assert not torch.equal(survivors_of(before[name], after[name]), after[name]), "SparseGPT changes what it keeps"


def test_precision_that_the_blocks_run_in_matters(run: Run, tmp_path: Path) -> None:
    """Else the tests above would show nothing."""
    model = save_tiny(tmp_path / "model")
    patterns = []
    for dtype in ("float32", "bfloat16"):
        run(model, save_model=tmp_path / dtype, dtype=dtype)
        patterns.append(
            torch.cat([t.flatten() != 0 for name, t in tensors(tmp_path / dtype).items() if is_pruned_layer(name)])
        )
    assert 0.9 < float((patterns[0] == patterns[1]).float().mean()) < 1


def test_zeros_of_both_signs_and_tiny_weights(run: Run, tmp_path: Path) -> None:
    """A weight that is zero already counts as pruned; the least float16 number above zero is a weight like any
    other.
    """
    model = save_tiny(tmp_path / "model", tiny_model(dtype=torch.float16))
    name = "model.layers.0.mlp.up_proj.weight"

    def edit(held: dict[str, Tensor]) -> None:
        held[name][:, :8] = 0.0
        held[name][:, 8:12] = -0.0
        held[name][0, 12:] = 6e-8

    change_weights(model, edit)
    run(model, save_model=tmp_path / "out", prune_method="wanda")
    after = tensors(tmp_path / "out")[name]
    assert torch.all((after == 0).sum(1) == after.shape[1] // 2)
    assert torch.all(after[0, 12:][after[0, 12:] != 0] == torch.tensor(6e-8, dtype=torch.float16))
