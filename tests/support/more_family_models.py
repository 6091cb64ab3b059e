"""Arguments of tiny models: those with latent attention, and hybrids of attention with other layers.

Each entry has the prefix of the model class, the class of its configuration, and the arguments of that beside those
that all of these models share. Hybrids have three layers of attention: of the random patterns of removed heads, one
empties a layer, one keeps all of it, and the third has some of its heads removed.
"""

from typing import Any

from tests.support.multimodal_models import DELTA

__all__ = ["HYBRID_MODELS", "INDEXED", "LATENT", "LATENT_MODELS", "WITHOUT_KNOWN_NEURONS"]

# Uneven sizes: the widths of queries, of keys, of values and of the latents differ.
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
}
_DENSE: dict[str, Any] = {"first_k_dense_replace": 4}
# All keys: the scores of an index tie at zero, where the choice of fewer would depend on rounding.
INDEXED: dict[str, Any] = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 64}
_LINEAR: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["full_attention", "linear_attention", "full_attention", "full_attention"],
}
_DELTA: dict[str, Any] = {**DELTA, **_LINEAR}
_MAMBA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_conv": 3,
    "mamba_expand": 2,
    "mamba_chunk_size": 4,
}

LATENT_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deepseek_v2": (
        "DeepseekV2",
        "DeepseekV2Config",
        {**LATENT, **_DENSE, "q_lora_rank": None, "attention_bias": True},
    ),
    "deepseek_v3": ("DeepseekV3", "DeepseekV3Config", {**LATENT, **_DENSE}),
    "deepseek_v32": ("DeepseekV32", "DeepseekV32Config", {**LATENT, **_DENSE, **INDEXED}),
    # transformers 5.24 loads the tied embedding of a saved dense model wrongly.
    "youtu": ("Youtu", "YoutuConfig", {**LATENT, "tie_word_embeddings": False}),
    "glm4_moe_lite": ("Glm4MoeLite", "Glm4MoeLiteConfig", {**LATENT, "mlp_layer_types": ["dense"] * 3}),
    "minicpm3": ("MiniCPM3", "MiniCPM3Config", LATENT),
    "axk1": ("AXK1", "AXK1Config", {**LATENT, **_DENSE}),
    "mistral4": ("Mistral4", "Mistral4Config", {**LATENT, **_DENSE}),
    "longcat_flash": (
        "LongcatFlash",
        "LongcatFlashConfig",
        {
            **LATENT,
            "num_layers": 2,
            "head_dim": 8,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 48,
            "n_routed_experts": 4,
            "moe_topk": 2,
            "zero_expert_num": 1,
        },
    ),
    "kimi_linear": (
        "KimiLinear",
        "KimiLinearConfig",
        {**LATENT, **_DENSE, **_LINEAR, "linear_num_heads": 2, "linear_head_dim": 8},
    ),
    "bailing_hybrid": (
        "BailingHybrid",
        "BailingHybridConfig",
        {**LATENT, **_DENSE, **_LINEAR, "linear_num_heads": 2, "linear_head_dim": 8},
    ),
}
HYBRID_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3Next", "Qwen3NextConfig", {**_DELTA, "num_experts": 0}),
    "qwen3_5": ("Qwen3_5", "Qwen3_5TextConfig", _DELTA),
    "qwen3_5_moe": (
        "Qwen3_5Moe",
        "Qwen3_5MoeTextConfig",
        {
            **_DELTA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "falcon_h1": ("FalconH1", "FalconH1Config", {**_MAMBA, "num_hidden_layers": 3, "mamba_d_ssm": 128}),
    "bamba": ("Bamba", "BambaConfig", {**_MAMBA, "attn_layer_indices": [0, 2, 3]}),
    "jamba": (
        "Jamba",
        "JambaConfig",
        {
            "num_hidden_layers": 6,
            "num_experts": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 0,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        "GraniteMoeHybridConfig",
        {
            **_MAMBA,
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "layer_types": ["attention", "mamba", "attention", "attention"],
        },
    ),
    "nemotron_h": (
        "NemotronH",
        "NemotronHConfig",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["attention", "mamba", "attention", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 4,
            "conv_kernel": 3,
        },
    ),
    "minimax": ("MiniMax", "MiniMaxConfig", {**_LINEAR, "num_local_experts": 2, "block_size": 4}),
    "lfm2": (
        "Lfm2",
        "Lfm2Config",
        {
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "conv", "full_attention", "full_attention"],
            "conv_L_cache": 3,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        "RecurrentGemmaConfig",
        {
            "num_hidden_layers": 5,
            "lru_width": 64,
            "block_types": ["attention", "recurrent"],
            "attention_window_size": 32,
        },
    ),
}
WITHOUT_KNOWN_NEURONS = {"nemotron_h"}
