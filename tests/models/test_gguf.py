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
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_file(path: Path, kind: str) -> None:
    """A tiny LLaMA: matrices in 8- or 4-bit blocks, norms in float32."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    config = tiny_config("llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCAB)
    chosen = gguf.GGMLQuantizationType[kind]
    for name, tensor in tiny_model("llama").state_dict().items():
        stem, _, last = name.rpartition(".")
        if stem in OUTSIDE:
            target = f"{OUTSIDE[stem]}.{last}"
        else:
            _, _, index, part = stem.split(".", 3)
            target = f"blk.{index}.{PARTS[part]}.{last}"
        values = tensor.float().numpy()
        if tensor.dim() == 2:
            writer.add_tensor(target, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_as_transformers_reads_and_prunes(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_file(file, kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.bfloat16)
    del theirs.config.quantization_config
    plain = in_bfloat16(AutoModelForCausalLM.from_config(theirs.config))
    plain.load_state_dict(theirs.state_dict())
    plain.save_pretrained(tmp_path / "dense")
    checkpoint = open_checkpoint(file)
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    assert same(checkpoint.read(checkpoint.shards), dense)

    save_file({"input_ids": tiny_ids()}, tmp_path / "ids.safetensors")
    data = {"calibration_data": tmp_path / "ids.safetensors", "nsamples": 6, "seqlen": 24, "sparsity_ratio": 0.5}
    for source, out in ((file, "out"), (tmp_path / "dense", "expected")):
        autoprune.prune(source, prune_barber=True, save_model=tmp_path / out, **data)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "expected"))
    assert "GGUF" in (tmp_path / "out" / "README.md").read_text()
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert audit(tmp_path / "out", file).sound
    assert autoprune.inspect(file, seqlen=24).replay.startswith("exact")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def weights(directory: Path) -> Weights:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


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
