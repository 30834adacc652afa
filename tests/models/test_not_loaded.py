"""Tensors in the file that the model does not load: copied byte for byte, named in the record, confirmed by verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from configs import in_bfloat16, tiny_ids, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import autoprune
from autoprune.errors import ModelError
from autoprune.evaluation.audit import audit

EXTRA = {
    "qwen3_next": ("mtp.layers.0.mlp.up_proj.weight", "mtp.fc.weight"),
    "deepseek_v3": ("model.layers.2.mlp.experts.0.gate_proj.weight", "model.layers.2.self_attn.o_proj.weight"),
    "llama": ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"),
}
NAMED = {
    "qwen3_next": "mtp (2 tensors",
    "deepseek_v3": "model.layers.2",
    "llama": "model.layers.*.self_attn.rotary_emb (2 tensors",
}


def build(name: str, folder: Path, **config: int) -> dict[str, Tensor]:
    """A model and, in its file, tensors that it does not load."""
    in_bfloat16(tiny_model(name)).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    extra = {key: torch.randn(24, 32, generator=generator).bfloat16() for key in EXTRA[name]}
    save_file({**load_file(folder / "model.safetensors"), **extra}, folder / "model.safetensors", {"format": "pt"})
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | config))
    save_file({"input_ids": tiny_ids()}, folder.parent / "ids.safetensors")
    return extra


@pytest.mark.parametrize("name", EXTRA)
def test_copied_named_and_confirmed(name: str, tmp_path: Path) -> None:
    extra = build(name, tmp_path / "dense", num_nextn_predict_layers=1)
    data = {"calibration_data": tmp_path / "ids.safetensors", "nsamples": 6, "seqlen": 24}
    out = tmp_path / "out"
    autoprune.prune(tmp_path / "dense", sparsity_ratio=0.5, prune_method="wanda", save_model=out, **data)
    after = {key: tensor for file in out.glob("*.safetensors") for key, tensor in load_file(file).items()}
    assert all(torch.equal(after[key], tensor) for key, tensor in extra.items())
    recorded = json.loads((out / "autoprune.json").read_text())["model"]["left_alone"]
    assert any(NAMED[name] in part for part in recorded), recorded
    assert audit(out, tmp_path / "dense").sound

    file = next(file for file in out.glob("*.safetensors") if next(iter(extra)) in load_file(file))
    held = load_file(file)
    held[next(iter(extra))][0, 0] += 1
    save_file(held, file, {"format": "pt"})
    faults = audit(out, tmp_path / "dense").faults
    assert any(next(iter(extra)) in str(fault) for fault in faults), faults


def test_blocks_that_nobody_announced_are_still_refused(tmp_path: Path) -> None:
    in_bfloat16(tiny_model("llama")).save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "model.safetensors"
    held = load_file(file)
    more = {key.replace(".1.", ".2."): held[key].clone() for key in held if ".layers.1." in key}
    save_file({**held, **more}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"hold model\.layers\.2, but config\.json knows only 2 blocks"):
        autoprune.inspect(tmp_path / "dense")
