"""Tiny random models: for every architecture the least configuration that shows its peculiarities."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 96
TOKENS = 24  # longer than every sliding window below

_LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_SLIDING = {"sliding_window": 8, "head_dim": 8}
_TINY_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

_MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
_CHUNKED = {"intermediate_size_mlp": 64, "attention_chunk_size": 8, "no_rope_layers": [1, 0], "head_dim": 8}
_DELTA_HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_DELTA_NET = {**_DELTA_HEADS, "linear_conv_kernel_dim": 2, "full_attention_interval": 2, "shared_expert_intermediate_size": 24}
_GROUPED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 2, "first_k_dense_replace": 1, "num_key_value_heads": 4}

DENSE: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 8},
    "qwen2": {**_LLAMA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {**_LLAMA, "head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma2": {**_LLAMA, **_SLIDING, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_LLAMA, **_SLIDING, "num_hidden_layers": 3, "sliding_window_pattern": 3, "query_pre_attn_scalar": 8},
    "phi": _LLAMA,
    "phi3": {**_LLAMA, "pad_token_id": 0, "sliding_window": 8},
    "opt": {**_LLAMA, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "opt/projected": {**_LLAMA, "ffn_dim": 64, "word_embed_proj_dim": 16, "max_position_embeddings": 64, "do_layer_norm_before": False},
    "gpt2": _GPT2,
    "gpt_neox": _LLAMA,
    "gpt_neox/sequential": {**_LLAMA, "use_parallel_residual": False},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**_LLAMA, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "alibi": False},
    "falcon/grouped": {**_LLAMA, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon/alibi": {**_LLAMA, "new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "alibi": True},
    "starcoder2": {**_LLAMA, "sliding_window": 8},
    "olmo2": _LLAMA,
    "stablelm": {**_LLAMA, "qk_layernorm": True},
    "cohere": {**_LLAMA, "use_qk_norm": True},
    "cohere2": {**_LLAMA, "num_hidden_layers": 3, "sliding_window": 8, "sliding_window_pattern": 3},
    "glm4": {**_LLAMA, "head_dim": 8, "pad_token_id": 0},
    "smollm3": {**_LLAMA, "use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2, "pad_token_id": 0},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {**_GPT2, "rotary_dim": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "codegen": {**_GPT2, "rotary_dim": 4},
    "granite": {**_LLAMA, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "nemotron": _LLAMA,
    "persimmon": _LLAMA,
    "exaone4": {**_LLAMA, "num_hidden_layers": 3, "sliding_window": 8, "sliding_window_pattern": 3},
    "mamba": {"hidden_size": 48, "state_size": 4, "time_step_rank": 4, "num_hidden_layers": 2, "conv_kernel": 2},
    "gemma3": {"text_config": {**_LLAMA, **_SLIDING, "vocab_size": VOCAB, "query_pre_attn_scalar": 8}, "vision_config": _TINY_VISION},
}

EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {**_LLAMA, "num_local_experts": 4, "sliding_window": 8},
    "qwen3_moe": {**_LLAMA, **_MOE, "head_dim": 8},
    "gpt_oss": {**_LLAMA, **_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {**_LLAMA, **_CHUNKED, "num_local_experts": 4, "interleave_moe_layer_step": 2},
    "deepseek_v3": {**_LLAMA, **_MLA, **_MOE, **_GROUPED},
    "qwen3_next": {**_LLAMA, **_MOE, **_DELTA_NET, "head_dim": 8},
}

UNSUPPORTED: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        **_LLAMA,
        **_SLIDING,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "altup_num_inputs": 2,
    },
}


def tiny_model(name: str, **extra: Any) -> PreTrainedModel:
    """A random model of this architecture, the same at every call."""
    model_type = name.split("/")[0]
    chosen = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, **(DENSE | EXPERTS | UNSUPPORTED)[name], **extra}
    config = AutoConfig.for_model(model_type, **chosen)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
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
