"""Tiny models with experts: one for each layout of their parameters and each place of their activation."""

from tests.support.family_models import GROUPED, SEQ2SEQ, T5, Family, _decoder, _seq2seq

MOE = {**GROUPED, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}

EXPERTS: dict[str, Family] = {
    "mixtral": _decoder("Mixtral", {**MOE, "num_local_experts": 4}),
    "gpt_oss": _decoder("GptOss", {**MOE, "num_local_experts": 4, "sliding_window": 6}, implementations=("eager",)),
    "qwen2_moe": _decoder("Qwen2Moe", {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 48}),
    "qwen3_moe": _decoder("Qwen3Moe", {**MOE, "num_experts": 4, "mlp_only_layers": [1]}),
    "deepseek_v3": _decoder(
        "DeepseekV3",
        {
            **MOE,
            **LATENT,
            "num_key_value_heads": 8,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "llama4": Family(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            **GROUPED,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 32,
        },
        generates=True,
    ),
    "aria": _decoder("AriaText", {**GROUPED, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}),
    "lfm2_moe": _decoder(
        "Lfm2Moe",
        {**MOE, "num_experts": 4, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "full_attention"]},
    ),
    "nemotron_h": _decoder(
        "NemotronH",
        {
            **MOE,
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 48,
            "layers_block_type": ["attention", "moe", "moe"],
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "openai_privacy_filter": Family(
        "OpenAIPrivacyFilterForTokenClassification",
        "OpenAIPrivacyFilterConfig",
        {**MOE, "num_local_experts": 4},
        implementations=("eager",),
    ),
    # Experts of these are separate modules with linear layers.
    "switch_transformers": _seq2seq(
        "SwitchTransformers",
        {**T5, "num_experts": 3, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        implementations=("eager",),
    ),
    "nllb_moe": _seq2seq(
        "NllbMoe",
        {**SEQ2SEQ, "num_experts": 3, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
        implementations=("eager",),
    ),
}
