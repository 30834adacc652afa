"""Quantised checkpoints: read as transformers dequantises them, and pruned as the bfloat16 checkpoint that they
stand for, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from configs import LLAMA, MOE, in_bfloat16, tiny_ids, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.errors import ModelError
from autoprune.evaluation.audit import audit
from autoprune.events import Event, Notice
from autoprune.storage.dequantise import microscaled, scaled
from autoprune.storage.source import open_checkpoint

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
Weights = dict[str, Tensor]


def quantised(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """FP8 values and float32 scales, one for every block of rows and columns."""
    rows, columns = weight.shape
    tiles = weight.float().view(rows // block[0], block[0], columns // block[1], block[1])
    scale = tiles.abs().amax((1, 3)).clamp(min=1e-12) / 448
    return (tiles / scale[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn), scale


def in_blocks(held: Weights) -> Weights:
    changed = dict(held)
    for name, weight in held.items():
        if ".layers." in name and weight.dim() == 2 and not name.endswith("mlp.gate.weight"):
            changed[name], changed[f"{name}_scale_inv"] = quantised(weight, (16, 16))
    return changed


def whole(held: Weights) -> Weights:
    """A scale for every tensor, and one for its inputs that nobody needs any more."""
    changed = dict(held)
    for name, weight in held.items():
        if ".layers." in name and weight.dim() == 2:
            values, scale = quantised(weight, tuple(weight.shape))  # type: ignore[arg-type]
            changed[name], changed[f"{name}_scale_inv"] = values, scale.view(())
            changed[name.replace("weight", "activation_scale")] = torch.ones(())
    return changed


def microscale(held: Weights) -> Weights:
    """Experts in MXFP4 with random bytes; scales around one hundredth."""
    changed, generator = dict(held), torch.Generator().manual_seed(0)
    for name, weight in held.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = changed.pop(name).shape
            form = (experts, rows, columns // 32)
            changed[f"{name}_blocks"] = torch.randint(0, 256, (*form, 16), generator=generator, dtype=torch.uint8)
            changed[f"{name}_scales"] = torch.randint(118, 122, form, generator=generator, dtype=torch.uint8)
            assert weight.shape == (experts, columns, rows)
    return changed


KINDS: dict[str, tuple[str, dict[str, object], Callable[[Weights], Weights]]] = {
    "blocks": ("llama", FP8, in_blocks),
    "experts": ("qwen3_moe", FP8 | {"modules_to_not_convert": ["gate", "lm_head"]}, in_blocks),
    "whole": ("ministral3", FP8 | {"activation_scheme": "static", "weight_block_size": None}, whole),
    "mxfp4": ("gpt_oss", {"quant_method": "mxfp4"}, microscale),
}
SIZES = {"qwen3_moe": {**LLAMA, **MOE, "head_dim": 8, "moe_intermediate_size": 32}}


def build(kind: str, folder: Path) -> Path:
    """A quantised checkpoint, and token ids beside it."""
    name, config, change = KINDS[kind]
    in_bfloat16(tiny_model(name, **SIZES.get(name, {}))).save_pretrained(folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {"quantization_config": config}))
    save_file({"input_ids": tiny_ids()}, folder.parent / "ids.safetensors")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers_dequantises_and_prunes(kind: str, tmp_path: Path) -> None:
    here = build(kind, tmp_path / "quantised")
    theirs = AutoModelForCausalLM.from_pretrained(here, dtype=torch.bfloat16)
    plain = in_bfloat16(tiny_model(KINDS[kind][0], **SIZES.get(KINDS[kind][0], {})))  # theirs would save FP8 again
    plain.load_state_dict(theirs.state_dict())
    plain.save_pretrained(tmp_path / "dense")
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    checkpoint = open_checkpoint(here)
    seen = checkpoint.read(checkpoint.shards)
    assert same(seen, dense)
    checkpoint.copy(checkpoint.shards, tmp_path / "copy.safetensors")
    assert same(load_file(tmp_path / "copy.safetensors"), dense)

    events: list[Event] = []
    data = {"calibration_data": tmp_path / "ids.safetensors", "nsamples": 6, "seqlen": 24, "sparsity_ratio": 0.5}
    for source, out in ((here, "out"), (tmp_path / "dense", "expected")):
        autoprune.prune(source, prune_barber=True, save_model=tmp_path / out, emit=events.append, **data)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "expected"))
    assert any("stand for" in event.text for event in events if isinstance(event, Notice))
    assert "stand for" in (tmp_path / "out" / "README.md").read_text()
    assert "stand for" in json.loads((tmp_path / "out" / "autoprune.json").read_text())["model"]["weights"]
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    assert audit(tmp_path / "out", here).sound


def weights(directory: Path) -> Weights:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a
    )


def test_blocks_at_the_edge_are_cut_off() -> None:
    """As DeepSeek-V3's projection to 576 = 4.5 * 128 latent values has them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(37, 50, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 4, generator=generator)
    slow = torch.tensor([[float(weight[i, j]) * float(scale[i // 16, j // 16]) for j in range(50)] for i in range(37)])
    assert torch.equal(scaled(weight, scale, (16, 16)), slow.to(torch.bfloat16))


@pytest.mark.parametrize("shape", [(8, 1), (8,), (1,), ()])
def test_a_scale_for_every_row_or_for_all(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, scale = torch.randn(8, 6, generator=generator), torch.rand(shape, generator=generator)
    expected = weight.to(torch.float8_e4m3fn).float() * scale.reshape(-1, 1)
    block = (1, 6) if scale.numel() > 1 else (8, 6)
    assert torch.equal(scaled(weight.to(torch.float8_e4m3fn), scale, block), expected.to(torch.bfloat16))


def test_microscaled_values_by_hand() -> None:
    blocks = torch.arange(2 * 3 * 2 * 16, dtype=torch.int32).remainder(256).to(torch.uint8).view(2, 3, 2, 16)
    scales = torch.tensor([[[127, 120], [130, 1], [2, 200]]] * 2, dtype=torch.uint8)
    made = microscaled(blocks, scales)
    for e, r, g, b in torch.cartesian_prod(*(torch.arange(n) for n in blocks.shape)).tolist():
        byte, factor = int(blocks[e, r, g, b]), 2.0 ** (int(scales[e, r, g]) - 127)
        for k, nibble in enumerate((byte & 15, byte >> 4)):
            assert float(made[e, g * 32 + 2 * b + k, r]) == E2M1[nibble] * factor


def test_memory_holds_one_tensor_and_not_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied into a result is made, written and let go, one tensor after the other."""
    from autoprune.storage import dequantise

    here = build("blocks", tmp_path / "quantised")
    checkpoint = open_checkpoint(here)
    alive, most = set[int](), 0
    own = dequantise.scaled

    def counted(*args: object) -> Tensor:
        nonlocal most
        import weakref

        made = own(*args)  # type: ignore[arg-type]
        alive.add(id(made))
        weakref.finalize(made, alive.discard, id(made))
        most = max(most, len(alive))
        return made

    monkeypatch.setattr(dequantise, "scaled", counted)
    checkpoint.copy(checkpoint.shards, tmp_path / "copy.safetensors")
    assert most == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, ("gptq", "base_model")),
        ({"quant_method": "awq"}, ("awq", "base_model")),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ("bitsandbytes", "dequantize()")),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            ("compressed-tensors, pack-quantized", "base_model"),
        ),
    ],
)
def test_other_kinds_are_refused_by_name(config: dict[str, object], words: tuple[str, ...], tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | {"quantization_config": config}))
    with pytest.raises(ModelError) as error:
        open_checkpoint(tmp_path)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("form", ["(n, 1)", "blocks"])
def test_compressed_tensors_in_fp8(form: str, tmp_path: Path) -> None:
    """A scale for every output channel, or for every block; the values are the products."""
    in_bfloat16(tiny_model("llama")).save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    expected, changed = dict(held), dict(held)
    for name, weight in held.items():
        if ".layers." in name and weight.dim() == 2:
            block = (1, weight.shape[1]) if form == "(n, 1)" else (16, 16)
            values, scale = quantised(weight, block)
            scale = scale.bfloat16()
            changed[name], changed[f"{name}_scale"] = values, scale
            spread = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            expected[name] = (values.float() * spread).bfloat16()
    save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
    stated = json.loads((tmp_path / "config.json").read_text())
    args = {"num_bits": 8, "type": "float", "block_structure": None if form == "(n, 1)" else [16, 16]}
    config = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"g": {"weights": args}},
    }
    (tmp_path / "config.json").write_text(json.dumps(stated | {"quantization_config": config}))
    checkpoint = open_checkpoint(tmp_path)
    assert same(checkpoint.read(checkpoint.shards), expected)


def test_scales_that_do_not_fit_are_named(tmp_path: Path) -> None:
    here = build("blocks", tmp_path / "quantised")
    held = load_file(here / "model.safetensors")
    held["model.layers.0.self_attn.q_proj.weight_scale_inv"] = torch.ones(3, 5)
    save_file(held, here / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"q_proj\.weight_scale_inv is \(3, 5\), which does not fit"):
        open_checkpoint(here)


def test_an_adapter_is_refused_with_the_line_that_merges_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"merge_and_unload\(\).*'some/base'"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="PEFT adapter"):
        autoprune.inspect(tmp_path)
