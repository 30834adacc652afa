"""Tiny random models: for every architecture the least configuration that shows its peculiarities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

VOCAB = 96
TOKENS = 24  # longer than every sliding window below

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HEAD = {"head_dim": 8}
SLIDING = {"sliding_window": 8, **HEAD}
TINY_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
CHUNKED = {"intermediate_size_mlp": 64, "attention_chunk_size": 8, "no_rope_layers": [1, 0], "head_dim": 8}
DELTA_HEADS = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
DELTA_NET = {
    **DELTA_HEADS,
    "linear_conv_kernel_dim": 2,
    "full_attention_interval": 2,
    "shared_expert_intermediate_size": 24,
}
GROUPED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 2, "first_k_dense_replace": 1, "num_key_value_heads": 4}

DENSE: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 8},
    "qwen2": {**LLAMA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {**LLAMA, "head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma2": {**LLAMA, **SLIDING, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **LLAMA,
        **SLIDING,
        "num_hidden_layers": 3,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 8,
    },
    "phi": LLAMA,
    "phi3": {**LLAMA, "pad_token_id": 0, "sliding_window": 8},
    "opt": {**LLAMA, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "opt/projected": {
        **LLAMA,
        "ffn_dim": 64,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 64,
        "do_layer_norm_before": False,
    },
    "gpt2": GPT2,
    "gpt_neox": LLAMA,
    "gpt_neox/sequential": {**LLAMA, "use_parallel_residual": False},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**LLAMA, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "alibi": False},
    "falcon/grouped": {**LLAMA, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon/alibi": {
        **LLAMA,
        "new_decoder_architecture": False,
        "multi_query": False,
        "parallel_attn": False,
        "alibi": True,
    },
    "starcoder2": {**LLAMA, "sliding_window": 8},
    "olmo2": LLAMA,
    "stablelm": {**LLAMA, "qk_layernorm": True},
    "cohere": {**LLAMA, "use_qk_norm": True},
    "cohere2": {**LLAMA, "num_hidden_layers": 3, "sliding_window": 8, "sliding_window_pattern": 3},
    "glm4": {**LLAMA, "head_dim": 8, "pad_token_id": 0},
    "smollm3": {
        **LLAMA,
        "use_sliding_window": True,
        "sliding_window": 8,
        "no_rope_layer_interval": 2,
        "pad_token_id": 0,
    },
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gptj": {**GPT2, "rotary_dim": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "codegen": {**GPT2, "rotary_dim": 4},
    "granite": {**LLAMA, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "nemotron": LLAMA,
    "persimmon": LLAMA,
    "exaone4": {**LLAMA, "num_hidden_layers": 3, "sliding_window": 8, "sliding_window_pattern": 3},
    "mamba": {"hidden_size": 48, "state_size": 4, "time_step_rank": 4, "num_hidden_layers": 2, "conv_kernel": 2},
}

EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {**LLAMA, "num_local_experts": 4, "sliding_window": 8},
    "qwen3_moe": {**LLAMA, **MOE, "head_dim": 8},
    "gpt_oss": {**LLAMA, **SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {**LLAMA, **CHUNKED, "num_local_experts": 4, "interleave_moe_layer_step": 2},
    "deepseek_v3": {**LLAMA, **MLA, **MOE, **GROUPED},
    "qwen3_next": {**LLAMA, **MOE, **DELTA_NET, "head_dim": 8},
}

LANGUAGE = {**LLAMA, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA4_VISION = {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
_GEMMA4 = {"global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
_SEGMENTS = {"output_channels": 8, "mlp_dim": 16, "window_size": 2, "global_attn_indexes": [0]}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
}

# Models with more than a language model inside.
WRAPPED: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": {**LANGUAGE, **SLIDING, "query_pre_attn_scalar": 8}, "vision_config": TINY_VISION},
    "gemma4": {
        "text_config": {**LANGUAGE, **SLIDING, **_GEMMA4},
        "vision_config": {**TINY_VISION, **HEAD},
        "audio_config": None,
    },
    "got_ocr2": {"text_config": {**LANGUAGE, "model_type": "qwen2"}, "vision_config": {**TINY_VISION, **_SEGMENTS}},
    "llama4": {
        "text_config": {**LANGUAGE, **CHUNKED, "num_local_experts": 4, "interleave_moe_layer_step": 2},
        "vision_config": {**TINY_VISION, **_LLAMA4_VISION, "intermediate_size": 64},
    },
    "qwen3_5": {
        "text_config": {
            **LANGUAGE,
            **DELTA_HEADS,
            **HEAD,
            "linear_conv_kernel_dim": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "vision_config": _QWEN_VISION,
    },
}

_HYBRID = {
    "mamba_d_state": 4,
    "mamba_d_conv": 2,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "num_hidden_layers": 4,
}

# What is refused, and why.
REFUSED: dict[str, dict[str, Any]] = {
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000},
    },
    "gemma3n_text": {
        **LLAMA,
        **SLIDING,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "altup_num_inputs": 2,
    },
    "hrm_text": LLAMA,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "zamba": {
        **LLAMA,
        **_HYBRID,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_dt_rank": 4,
        "n_mamba_heads": 2,
    },
    "zamba2": {**LLAMA, **_HYBRID, "mamba_ngroups": 1, "n_mamba_heads": 8, "chunk_size": 8, "num_mem_blocks": 1},
}


def tiny_config(name: str, **extra: Any) -> PreTrainedConfig:
    """The configuration of a tiny model; skips where transformers is too old to know the architecture."""
    from more import MORE, MORE_EXPERTS

    model_type = name.split("/")[0]
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {model_type}")
    chosen = (DENSE | EXPERTS | WRAPPED | REFUSED | MORE | MORE_EXPERTS)[name]
    common = {} if name in WRAPPED else {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
    if name in MORE | MORE_EXPERTS:
        common["pad_token_id"] = 0
    return AutoConfig.for_model(model_type, **{**common, **chosen, **extra})


def tiny_model(name: str, **extra: Any) -> PreTrainedModel:
    """A random model of this architecture, the same at every call; wrapped ones with all that they have."""
    config = tiny_config(name, **extra)
    torch.manual_seed(0)
    build = AutoModelForImageTextToText if name in WRAPPED else AutoModelForCausalLM
    model = build.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initial zeros and ones would hide biases and norms that are left out
            parameter.add_(torch.randn_like(parameter) * 0.02)
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and buffer.is_floating_point():
                buffer.add_(torch.randn_like(buffer) * 0.02)
    return model


def tiny_ids(samples: int = 6) -> torch.Tensor:
    """Token ids ``[samples, TOKENS]``."""
    return torch.randint(3, VOCAB, (samples, TOKENS), generator=torch.Generator().manual_seed(1))


def in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its weights in bfloat16; tables that are not stored stay as they are."""
    stored = model.state_dict()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in stored and tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.bfloat16)
    return model
