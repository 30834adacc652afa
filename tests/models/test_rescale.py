"""`autoprune shrink --heal rescale`: what blocks behind a gap add is scaled, and nothing else."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import save_tiny, tensors, tiny_model, write_words
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.model.rescale import factors, rescaled
from autoprune.model.stream import Place
from autoprune.model.walk import prepare_inputs
from autoprune.storage.store import MemoryStore

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ADDING: dict[str, tuple[dict[str, Any], set[str]]] = {
    "llama": ({}, {"self_attn.o_proj.weight", "mlp.down_proj.weight"}),
    "gpt2": (GPT2, {f"{part}.c_proj.{kind}" for part in ("attn", "mlp") for kind in ("weight", "bias")}),
    "mixtral": ({"num_local_experts": 4}, {"self_attn.o_proj.weight", "mlp.experts.down_proj"}),
    "gemma2": ({"head_dim": 8}, set()),  # a norm stands behind what it adds
}


@pytest.mark.parametrize("kind", ADDING)
def test_what_a_block_adds(kind: str) -> None:
    changes, names = ADDING[kind]
    store = MemoryStore(tiny_model(kind, **changes))
    inputs, stream = prepare_inputs(store, torch.arange(3, 35).view(2, 16), 2, Place())
    block = store.anatomy.blocks[0]
    found = rescaled(block, partial(inputs.calls.of(0, 0), block.module), stream[0] * 10, 0.5, 1e-2)
    assert found is None if not names else found is not None and set(found) == names


def test_factors() -> None:
    """Sizes 1, 2, 4, 8, 16 in front of blocks 0 to 3 and behind the last."""
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert [*factors(sizes, [0, 1, 2])] == [1.0, 1.0, 1.0]
    assert [*factors(sizes, [0, 3])] == [1.0, 0.25]
    assert [*factors(sizes, [1, 3])] == [0.5, 0.25]


@torch.no_grad()
def test_hidden_states_grow_at_the_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the dense model in which block 1 multiplies by alpha, and does nothing else."""
    dense = save_tiny(tmp_path / "dense", tiny_model(num_hidden_layers=4))
    monkeypatch.setattr("autoprune.run.shrink.lowest", lambda scores, count: [1])
    text = write_words(tmp_path / "text.txt", 300, 0)
    data = {"calibration_data": text, "nsamples": 4, "seqlen": 16}
    autoprune.shrink(dense, tmp_path / "out", blocks=1, heal="rescale", **data)
    record = json.loads((tmp_path / "out/autoprune.json").read_text())["shrink"]
    alpha = record["sizes"][2] / record["sizes"][1]
    assert alpha > 1.1 and [note.get("scaled") for note in record["blocks"]] == [None, 1 / alpha, 1 / alpha]
    old, new = tensors(dense), tensors(tmp_path / "out")
    for name in new:
        number = int(name.split(".")[2]) if ".layers." in name else 0
        before = old[name.replace(f"layers.{number}.", f"layers.{number + (number > 0)}.")]
        adds = number > 0 and name.endswith(("o_proj.weight", "down_proj.weight"))
        assert torch.allclose(new[name], before / alpha, rtol=1e-6) if adds else torch.equal(new[name], before)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto").eval()
    model.model.layers[1].forward = lambda hidden, *args, **kwargs: hidden * alpha
    ids = torch.arange(3, 35).view(2, 16)
    expected = model(ids, use_cache=False).logits
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert float((small(ids, use_cache=False).logits - expected).norm() / expected.norm()) < 1e-3


def test_norms_behind_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = save_tiny(tmp_path / "dense", tiny_model("gemma2", num_hidden_layers=3, head_dim=8))
    monkeypatch.setattr("autoprune.run.shrink.lowest", lambda scores, count: [1])
    text = write_words(tmp_path / "text.txt", 300, 0)
    data = {"calibration_data": text, "nsamples": 4, "seqlen": 16}
    with pytest.raises(autoprune.ModelError, match="what it adds to the hidden states can't be scaled by its layers"):
        autoprune.shrink(dense, tmp_path / "out", blocks=1, heal="rescale", **data)
    with pytest.raises(autoprune.RecipeError, match="--heal rescale goes by sizes"):
        autoprune.shrink(dense, tmp_path / "out", blocks=1, by="divergence", heal="rescale", **data)
