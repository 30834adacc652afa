"""`autoprune shrink` on families of models: the result is the dense model with those blocks skipped, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import change_weights, save_tiny, tensors, tiny_model, transformers_log, write_words
from models.configs import DELTA_NET, GROUPED, MLA, MOE, SLIDING
from runs import open_store
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import autoprune
from autoprune.evaluation.without import least_missed
from autoprune.model.anatomy import examine
from autoprune.model.stream import Place

BLOCKS = 5
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # by name: its configuration, and what of it must agree
    "llama": ({}, {}),
    "qwen3": (
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"layer_types": 3},
    ),
    "gemma3_text": (
        {**SLIDING, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
        {"layer_types": 3},
    ),
    "gpt2": ({"n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64}, {}),
    "opt": ({"ffn_dim": 64, "word_embed_proj_dim": 32}, {}),
    "mixtral": ({"num_local_experts": 4, "sliding_window": 8}, {}),
    "qwen3_moe": ({**MOE, "head_dim": 8, "mlp_only_layers": [0, 1, 3]}, {}),
    "qwen3_next": ({**MOE, **DELTA_NET, "head_dim": 8}, {"layer_types": 3}),
    "deepseek_v3": ({**MLA, **MOE, **GROUPED, "first_k_dense_replace": 2}, {}),
    "lfm2": ({"layer_types": ["conv", "full_attention", "conv", "full_attention", "conv"]}, {"layer_types": 3}),
}


def shrink_tiny(
    folder: Path,
    kind: str,
    changes: dict[str, Any],
    change: Callable[[dict[str, Tensor]], None] = lambda _: None,
    **options: Any,
) -> autoprune.ShrinkResult:
    """A tiny model in ``folder/dense``, ``change`` applied to its tensors, and the smaller one in ``folder/out``."""
    change_weights(save_tiny(folder / "dense", tiny_model(kind, **{"num_hidden_layers": BLOCKS, **changes})), change)
    text = write_words(folder / "text.txt", 300, 0)
    chosen = {"blocks": 2, "heal": "none", "nsamples": 4, "seqlen": 16, **options}
    return autoprune.shrink(folder / "dense", folder / "out", calibration_data=text, **chosen)


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(3))
    logits: Tensor = model(ids, use_cache=False).logits
    return logits


def _skip(block: nn.Module) -> None:
    def same(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    block.forward = same


@pytest.mark.filterwarnings("ignore:.*RoPE scaling factor.*")
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_dense_model_with_blocks_skipped(kind: str, tmp_path: Path) -> None:
    changes, lists = FAMILIES[kind]
    result = shrink_tiny(tmp_path, kind, changes)
    count = changes.get("num_hidden_layers", BLOCKS)
    assert len(result.dropped) == 2 and sorted(result.kept + result.dropped) == [*range(count)]
    with transformers_log() as said:
        small = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert said == []
    assert {name: len(getattr(small.config, name)) for name in lists} == lists
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto").eval()
    for block in examine(dense).blocks:
        if block.index in result.dropped:
            _skip(block.module)
    assert torch.equal(_logits(small), _logits(dense))
    made = small.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert made.shape == (1, 5)
    small.save_pretrained(tmp_path / "again")
    assert set(tensors(tmp_path / "again")) == set(tensors(tmp_path / "out"))


JAMBA = {
    "num_experts": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 4,
    "mamba_d_conv": 2,
    "mamba_dt_rank": 4,
}
REFUSED = {
    "jamba": (JAMBA, r"would become block .* of another kind by its number \(.*only blocks can go that leave"),
    "gemma4_text": (
        {
            **SLIDING,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 2,
            "layer_types": [f"{word}_attention" for word in ("sliding", "full", "sliding", "sliding", "full")],
        },
        r"the last 2 blocks use keys and values of earlier ones \(num_kv_shared_layers\)",
    ),
    "lfm2": (
        {"layer_types": ["conv", "full_attention", "conv", "conv", "conv"]},
        r"with the blocks [02-4] alone the model can't generate with a cache \(ValueError: .*drop fewer blocks",
    ),
    "gpt2": (
        {
            "n_embd": 32,
            "n_layer": BLOCKS,
            "n_head": 4,
            "n_positions": 64,
            "scale_attn_by_inverse_layer_idx": True,
        },
        r"would become block 2, which this model makes of another kind by its number \(attn.scaling: ",
    ),
}


def test_a_flag_is_no_block_number(tmp_path: Path) -> None:
    """Block 1 says that it has attention, which is True, and that is 1: it can be the only one that stays."""

    def still(held: dict[str, Tensor]) -> None:
        for name, tensor in held.items():
            if re.search(r"layers\.[0234]\..*(out_proj|w2)", name):
                tensor.zero_()

    kinds = ["conv", "full_attention", "conv", "conv", "conv"]
    result = shrink_tiny(tmp_path, "lfm2", {"layer_types": kinds}, change=still, blocks=4)
    assert result.kept == (1,)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_t_be_made_smaller(kind: str, tmp_path: Path) -> None:
    changes, why = REFUSED[kind]
    with pytest.raises(autoprune.ModelError, match=why):
        by = "influence" if kind in ("jamba", "gemma4_text") else "angular"
        shrink_tiny(tmp_path, kind, changes, by=by, blocks=4 if kind == "lfm2" else 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "text.txt"]


def test_what_blocks_leave_for_later_ones_is_gone_with_them(tmp_path: Path) -> None:
    """Block 3 reads the keys and values of block 2, which a model without block 2 does not have."""
    changes, _ = REFUSED["gemma4_text"]
    inputs = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128}
    save_tiny(tmp_path / "dense", tiny_model("gemma4_text", **{"num_hidden_layers": BLOCKS, **changes, **inputs}))
    ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(3))
    with pytest.raises(autoprune.ModelError, match=r"layers\.3 does not run without block 2, which leaves something"):
        least_missed(open_store(tmp_path / "dense"), ids, 1, Place(), lambda _: None)
