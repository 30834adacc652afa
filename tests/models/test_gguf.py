"""A GGUF file is read as transformers reads it, and pruned as the bfloat16 checkpoint that it stands for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from configs import VOCAB, in_bfloat16, tiny_config, tiny_ids, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.errors import ModelError
from autoprune.evaluation.audit import audit
from autoprune.storage.source import open_checkpoint

Weights = dict[str, Tensor]
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


ARCHITECTURES = {"llama": "llama", "qwen3_moe": "qwen3moe"}
SIZES = {"qwen3_moe": {"moe_intermediate_size": 768}}  # which transformers takes, whatever the file says


def write_file(path: Path, kind: str, name: str) -> None:
    """A tiny model: matrices in 8- or 4-bit blocks, norms and routers in float32."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, ARCHITECTURES[name])
    config = tiny_config(name, **SIZES.get(name, {}))
    if name == "qwen3_moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_key_length(config.head_dim)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCAB)
    chosen = gguf.GGMLQuantizationType[kind]
    for target, tensor in stored(tiny_model(name, **SIZES.get(name, {})).state_dict()).items():
        values = tensor.float().contiguous().numpy()
        if tensor.dim() > 1 and "gate_inp" not in target:
            writer.add_tensor(target, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored(state: Weights) -> Weights:
    """The model's parameters by the names that such files have."""
    found: Weights = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        if stem in OUTSIDE:
            found[f"{OUTSIDE[stem]}.{last}"] = tensor
            continue
        _, _, index, part = stem.split(".", 3)
        if last == "gate_up_proj":
            found[f"blk.{index}.ffn_gate_exps.weight"], found[f"blk.{index}.ffn_up_exps.weight"] = tensor.chunk(2, 1)
        elif last == "down_proj":
            found[f"blk.{index}.ffn_down_exps.weight"] = tensor
        else:
            found[f"blk.{index}.{PARTS[part]}.{last}"] = tensor
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind"), [("llama", "Q8_0"), ("llama", "Q4_0"), ("qwen3_moe", "Q8_0")])
def test_as_transformers_reads_and_prunes(name: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_file(file, kind, name)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.bfloat16)
    del theirs.config.quantization_config
    plain = in_bfloat16(AutoModelForCausalLM.from_config(theirs.config))
    plain.load_state_dict(theirs.state_dict())
    plain.save_pretrained(tmp_path / "dense")
    checkpoint = open_checkpoint(file)
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    assert same(fused(checkpoint.read(checkpoint.shards)), fused(dense))

    save_file({"input_ids": tiny_ids()}, tmp_path / "ids.safetensors")
    data = {"calibration_data": tmp_path / "ids.safetensors", "nsamples": 6, "seqlen": 24, "sparsity_ratio": 0.5}
    for source, out in ((file, "out"), (tmp_path / "dense", "expected")):
        autoprune.prune(source, prune_barber=True, save_model=tmp_path / out, **data)
    assert same(fused(weights(tmp_path / "out")), fused(weights(tmp_path / "expected")))
    texts = {"eval_data": tmp_path / "ids.safetensors", "seqlen": 24}
    moved = autoprune.compare(file, [tmp_path / "out", tmp_path / "dense"], unrelated=True, **texts)
    assert [model.shifts["ids.safetensors"].kld.mean > 0 for model in moved.models] == [True, False]
    assert "GGUF" in (tmp_path / "out" / "README.md").read_text()
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert audit(tmp_path / "out", file).sound
    assert autoprune.inspect(file, seqlen=24).replay.startswith("exact")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def weights(directory: Path) -> Weights:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def fused(held: Weights) -> Weights:
    """Experts that a checkpoint stores one by one, as the model holds them."""
    found, experts = dict[str, Tensor](), dict[str, dict[str, list[Tensor]]]()
    for name in sorted(held):
        before, inside, after = name.partition(".experts.")
        if inside and after[0].isdigit():
            experts.setdefault(before + ".experts", {}).setdefault(after.split(".")[1], []).append(held[name])
        else:
            found[name] = held[name]
    for name, parts in experts.items():
        gate, up, down = (torch.stack(parts[part]) for part in ("gate_proj", "up_proj", "down_proj"))
        found[f"{name}.gate_up_proj"], found[f"{name}.down_proj"] = torch.cat((gate, up), 1), down
    return found


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"autoprune\[gguf\]"):
        autoprune.inspect(tmp_path / "tiny.gguf")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"no such file" * 20)
    with pytest.raises(ModelError, match=r"tiny\.gguf: transformers can't read this GGUF file"):
        open_checkpoint(tmp_path / "tiny.gguf")
