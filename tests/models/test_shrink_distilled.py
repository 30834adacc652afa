"""`autoprune shrink --heal distill` on families of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import save_tiny, tiny_model, transformers_log
from models.configs import MOE, SLIDING
from torch import Tensor
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.cli.main import main

IDS = torch.randint(3, 96, (24, 24), generator=torch.Generator().manual_seed(0))
RUN: dict[str, Any] = {
    "calibration_data": IDS,
    "nsamples": len(IDS),
    "seqlen": IDS.shape[1],
    "heal": "distill",
    "epochs": 1,
    "reconstruct_dtype": "float32",
    "distill_epochs": 2,
    "distill_rate": 3e-4,
    "distill_dtype": "float32",
}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # by name: its configuration, and what goes
    "opt": ({"ffn_dim": 64, "word_embed_proj_dim": 32}, {"blocks": 1, "mlp": 0.25}),
    "gpt2": ({"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}, {"blocks": 1, "mlp": 0.25}),
    "lfm2": ({"layer_types": ["conv", "full_attention", "conv", "full_attention"]}, {"blocks": 1}),
    "gpt_oss": ({**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2}, {"blocks": 1, "experts": 1}),
    "qwen3_moe": ({**MOE, "head_dim": 8, "mlp_only_layers": [0, 1]}, {"blocks": 1, "mlp": 0.25, "experts": 1}),
    "gemma2": ({**SLIDING, "query_pre_attn_scalar": 8}, {"blocks": 1, "mlp": 0.25}),
    "gemma3_text": (
        {**SLIDING, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
        {"blocks": 1, "mlp": 0.25},
    ),
}


@torch.no_grad()
def _logits(directory: Path, ids: Tensor) -> Tensor:
    with transformers_log() as said:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert said == []
    return torch.log_softmax(model(ids, use_cache=False).logits.double(), -1)


@pytest.mark.filterwarnings("ignore:.*RoPE scaling factor.*")
@pytest.mark.parametrize("kind", FAMILIES)
def test_it_lowers_the_divergence_from_the_dense_model(kind: str, tmp_path: Path) -> None:
    changes, goes = FAMILIES[kind]
    dense, out = (
        save_tiny(tmp_path / "dense", tiny_model(kind, **{"num_hidden_layers": 4, **changes})),
        tmp_path / "out",
    )
    result = autoprune.shrink(dense, out, **RUN, **goes, **({"multiple": 16} if "mlp" in goes else {}))
    loss, held_out = result.whole["distill"], IDS[-2:]
    assert loss["held_out_after"] < loss["held_out_before"]
    p, q = _logits(dense, held_out), _logits(out, held_out)
    assert loss["held_out_after"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert main(["verify", str(out), "--model", str(dense)]) == 0
