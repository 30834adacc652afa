"""Makes a LLaMA-shaped checkpoint of random weights, shard by shard, without ever holding the model in memory.

The default is 2.2 GB: 22 blocks, width 2048, feed-forward 5632, 32 heads (4 key-value), vocabulary 32000, bfloat16, 5
shards.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig


def tensors(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the model."""
    width, ffn = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * (width // config.num_attention_heads)
    yield "model.embed_tokens.weight", (config.vocab_size, width)
    for i in range(config.num_hidden_layers):
        prefix = f"model.layers.{i}"
        yield f"{prefix}.input_layernorm.weight", (width,)
        for name, rows in (("q_proj", width), ("k_proj", kv), ("v_proj", kv), ("o_proj", width)):
            yield f"{prefix}.self_attn.{name}.weight", (rows, width)
        yield f"{prefix}.post_attention_layernorm.weight", (width,)
        for name, shape in (("gate_proj", (ffn, width)), ("up_proj", (ffn, width)), ("down_proj", (width, ffn))):
            yield f"{prefix}.mlp.{name}.weight", shape
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (config.vocab_size, width)


def write(config: LlamaConfig, out: Path, shards: int) -> int:
    """Writes the checkpoint and returns its size in bytes."""
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    everything = list(tensors(config))
    sizes = [torch.Size(shape).numel() * 2 for _, shape in everything]
    total, generator, index, done = sum(sizes), torch.Generator().manual_seed(0), {}, 0
    batch: dict[str, torch.Tensor] = {}
    number = 1
    for (name, shape), size in zip(everything, sizes, strict=True):
        noise = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        batch[name] = torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1 else noise
        index[name] = f"model-{number:05d}-of-{shards:05d}.safetensors"
        done += size
        if done >= total * number / shards:
            save_file(batch, out / index[name], metadata={"format": "pt"})
            batch, number = {}, number + 1
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    return total


def main() -> None:
    """Reads the flags and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--ffn", type=int, default=5632)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv_heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--shards", type=int, default=5)
    given = parser.parse_args()
    config = LlamaConfig(
        hidden_size=given.width,
        intermediate_size=given.ffn,
        num_hidden_layers=given.blocks,
        num_attention_heads=given.heads,
        num_key_value_heads=given.kv_heads,
        vocab_size=given.vocabulary,
        max_position_embeddings=2048,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    tokens = torch.randint(given.vocabulary, (8, 512), generator=torch.Generator().manual_seed(1))
    size = write(config, given.out, given.shards)
    save_file({"input_ids": tokens}, given.out.parent / f"{given.out.name}-tokens-8x512.safetensors")
    print(f"{size / 1e9:.2f} GB in {given.out}; 8 x 512 random tokens beside it")


if __name__ == "__main__":
    main()
