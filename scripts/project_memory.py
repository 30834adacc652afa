"""Writes the table of projected memory into docs/scale.md, from nothing but the shapes of large models."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import LlamaConfig

from autoprune.run.inspect import inspect
from autoprune.steps.table import PRICED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- projected:begin -->", "<!-- projected:end -->"
MODELS = {  # hidden_size, intermediate_size, blocks, heads, key-value heads, vocabulary, context
    "LLaMA-2 7B": (4096, 11008, 32, 32, 32, 32000, 4096),
    "LLaMA-2 70B": (8192, 28672, 80, 64, 8, 32000, 4096),
    "Llama 3.1 405B": (16384, 53248, 126, 128, 8, 128256, 131072),
}
SHOWN = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT", "wanda+barber": "Wanda + LLM-Barber"}


def config_of(name: str) -> LlamaConfig:
    """The shape of a published model."""
    width, ffn, blocks, heads, kv_heads, vocabulary, context = MODELS[name]
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def lines_of(name: str) -> list[str]:
    """The table's lines for one model, by `autoprune inspect` on a config.json that lies alone in its folder."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(
            json.dumps(config_of(name).to_dict() | {"torch_dtype": "bfloat16"}), encoding="utf-8"
        )
        found = inspect(folder, nsamples=128, seqlen=2048)
    costs = {cost.method: cost for cost in found.costs}
    weights = found.parameters * 2 / 2**30
    lines = []
    for i, method in enumerate(m for m in map("+".join, PRICED) if m in SHOWN):
        cost = costs[method]
        first = (name, f"{weights:,.1f} GiB") if i == 0 else ("", "")
        lines.append(
            f"| {first[0]} | {first[1]} | {SHOWN[method]} | {cost.bytes / 2**30:.1f} GiB |"
            f" {cost.bytes_on_disk / 2**30:.1f} GiB |"
        )
    return lines


def table() -> str:
    """All models as Markdown."""
    head = [
        "| model | its weights | method | hidden states in memory | `--activations disk` |",
        "|---|---:|---|---:|---:|",
    ]
    return "\n".join([*head, *(line for name in MODELS for line in lines_of(name))])


def main() -> None:
    """Replaces the table in the page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
