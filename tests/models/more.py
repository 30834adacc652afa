"""More architectures, which work without a line of code for them; a list for those who ask, and a net for what may
break.
"""

from __future__ import annotations

from typing import Any

from configs import DELTA_HEADS, DELTA_NET, GPT2, GROUPED, HEAD, LLAMA, MLA, MOE, SLIDING, VOCAB

_FULL = {**LLAMA, "num_key_value_heads": 4}
_EXPERTS = {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}
_LOCAL = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
_DEEP = {**_FULL, **MLA, **MOE, **GROUPED}
_SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 8, "mamba_d_conv": 2}
_INDEXED = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8}
_CONVOLVED = {**LLAMA, "layer_types": ["conv", "full_attention"], "conv_L_cache": 2, "block_multiple_of": 8}
_DELTA = {**LLAMA, **HEAD, "linear_conv_kernel_dim": 2, "layer_types": ["linear_attention", "full_attention"]}
_NEMOTRON = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 4,
    "n_groups": 1,
    "chunk_size": 8,
    "conv_kernel": 2,
    "n_routed_experts": 4,
}
_LATENT = {
    "ffn_hidden_size": 64,
    "expert_ffn_hidden_size": 24,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
    "num_layers": 2,
}
_PER_LAYER = {
    **LLAMA,
    **SLIDING,
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
}
_KIMI = {"kda_layers": [1], "full_attn_layers": [2], "num_heads": 2, "head_dim": 8, "short_conv_kernel_size": 2}
_JAMBA = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 4,
    "mamba_d_conv": 2,
}

MORE: dict[str, dict[str, Any]] = {
    "apertus": LLAMA,
    "arcee": LLAMA,
    "bamba": {**LLAMA, **_SSM, "attn_layer_indices": [1], "mamba_expand": 2},
    "biogpt": {**LLAMA, "max_position_embeddings": 64},
    "bitnet": LLAMA,
    "ctrl": {**GPT2, "dff": 64},
    "cwm": {**LLAMA, **SLIDING},
    "diffllama": LLAMA,
    "doge": LLAMA,
    "ernie4_5": {**LLAMA, **HEAD},
    "falcon_h1": {**LLAMA, **HEAD, **_SSM, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    "falcon_mamba": {
        "hidden_size": 48,
        "state_size": 4,
        "time_step_rank": 4,
        "num_hidden_layers": 2,
        "conv_kernel": 2,
    },
    "gemma": {**LLAMA, **HEAD},
    "gemma4_text": {
        **_PER_LAYER,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "glm": {**LLAMA, **HEAD},
    "gpt_bigcode": GPT2,
    "gpt_neox_japanese": {**LLAMA, "intermediate_multiple_size": 2},
    "granite_swa": {**LLAMA, "sliding_window": 8},
    "helium": {**LLAMA, **HEAD},
    "hunyuan_v1_dense": {**LLAMA, **HEAD},
    "hyperclovax": {**LLAMA, **HEAD},
    "internlm3": {**LLAMA, **HEAD},
    "jais2": LLAMA,
    "lfm2": _CONVOLVED,
    "mamba2": {
        "hidden_size": 48,
        "num_heads": 12,
        **HEAD,
        "state_size": 4,
        "num_hidden_layers": 2,
        "conv_kernel": 2,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "minicpm3": {**_FULL, **MLA},
    "ministral": {**LLAMA, **SLIDING},
    "ministral3": {**LLAMA, **HEAD},
    "modernbert-decoder": {**LLAMA, "local_attention": 8},
    "nanochat": LLAMA,
    "olmo": LLAMA,
    "olmo3": {**LLAMA, "sliding_window": 8},
    "olmo_hybrid": {**_DELTA, **DELTA_HEADS},
    "openai-gpt": GPT2,
    "qwen3_5_text": {**_DELTA, **DELTA_HEADS},
    "recurrent_gemma": {
        **LLAMA,
        "hidden_size": 64,
        "intermediate_size": 256,
        "lru_width": 64,
        "attention_window_size": 8,
        "num_hidden_layers": 3,
    },
    "rwkv": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "attention_hidden_size": 32,
        "intermediate_size": 64,
        "context_length": 64,
    },
    "seed_oss": {**LLAMA, **HEAD},
    "vaultgemma": {**LLAMA, **SLIDING, "query_pre_attn_scalar": 8},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64},
    "youtu": {**_FULL, **MLA, "pad_token_id": None},  # transformers would zero the embedding of the padding token
}

MORE_EXPERTS: dict[str, dict[str, Any]] = {
    "afmoe": {**_EXPERTS, **SLIDING, "moe_intermediate_size": 24, "num_dense_layers": 1},
    "bailing_hybrid": {**_FULL, **MLA, **MOE, **GROUPED, **HEAD, "layer_group_size": 2},
    "cohere2_moe": {**_EXPERTS, **SLIDING, "moe_intermediate_size": 24},
    "deepseek_v2": {
        **_FULL,
        **MLA,
        **GROUPED,
        "moe_intermediate_size": 24,
        "num_experts_per_tok": 2,
        "topk_method": "greedy",
    },
    "deepseek_v32": {**_DEEP, **_INDEXED},
    "dots1": {**_FULL, **MOE, **GROUPED, **HEAD, "n_shared_experts": 1},
    "ernie4_5_moe": {
        **LLAMA,
        "moe_intermediate_size": 24,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    },
    "exaone_moe": {**LLAMA, **MOE, **HEAD, "num_hidden_layers": 3, "sliding_window": 8},
    "flex_olmo": _EXPERTS,
    "gemma4_text/experts": (
        {
            **_PER_LAYER,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
        }
        | {
            "moe_intermediate_size": 24,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"],
        }
    ),
    "glm4_moe": {**LLAMA, **MOE, **GROUPED, **HEAD},
    "glm4_moe_lite": _DEEP,
    "glm_moe_dsa": {**_DEEP, **_INDEXED},
    "granitemoe": _LOCAL,
    "granitemoehybrid": {
        **_LOCAL,
        **_SSM,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention"],
        "mamba_expand": 2,
    },
    "granitemoeshared": {**_LOCAL, "shared_intermediate_size": 24},
    "hunyuan_v1_moe": {**LLAMA, **HEAD, "num_experts": 4, "moe_topk": 2},
    "jamba": {**LLAMA, **_JAMBA, "num_hidden_layers": 4, "num_experts": 4, "mamba_dt_rank": 4},
    "jetmoe": {**_LOCAL, "kv_channels": 8},
    "kimi_linear": {**_FULL, **MLA, **MOE, **HEAD, "linear_attn_config": _KIMI, "first_k_dense_replace": 1},
    "lfm2_moe": {**_CONVOLVED, **MOE, "num_dense_layers": 1},
    "longcat_flash": {**_FULL, **MLA, **_LATENT, **HEAD},
    "mimo_v2_flash": {
        **LLAMA,
        **HEAD,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "v_head_dim": 8,
    }
    | {"swa_head_dim": 8},
    "minimax": {**_LOCAL, **HEAD, "block_size": 8, "layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": {**_LOCAL, **HEAD, "rotary_dim": 4},
    "nemotron_h": {
        **LLAMA,
        **HEAD,
        **_NEMOTRON,
        "layers_block_type": ["mamba", "attention", "moe", "mlp"],
        "num_experts_per_tok": 2,
    }
    | {"moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24},
    "olmoe": _EXPERTS,
    "phimoe": {**_LOCAL, "sliding_window": 8},
    "qwen2_moe": {**LLAMA, **MOE, "shared_expert_intermediate_size": 24},
    "qwen3_5_moe_text": {**LLAMA, **MOE, **DELTA_NET, **HEAD, "layer_types": ["linear_attention", "full_attention"]},
    "solar_open": {**LLAMA, **MOE, **GROUPED, **HEAD},
}
