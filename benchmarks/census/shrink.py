"""Tiny configurations of any model type of transformers, by the names of their settings."""

import re
from collections.abc import Collection, Iterable
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

__all__ = ["shrink"]

_HIDDEN, _HEADS, _KEY_VALUE_HEADS, _HEAD_DIM, _WIDTH, _LAYERS, _VOCABULARY = 64, 4, 2, 16, 96, 2, 320

# The first pattern that matches a name in full decides; larger numbers than the value become the value.
_SIZES: list[tuple[str, int]] = [
    (r"num_feat_extract_layers", 13),
    (r"d_head", _HEAD_DIM),
    (r"patch_embed_hidden_size", 768),
    (r".*upsample_groups", _HIDDEN),
    (r".*num_key_value_heads|num_kv_heads|n_head_kv|.*_kv_heads|num_global_key_value_heads", _KEY_VALUE_HEADS),
    (r"linear_num_key_heads|linear_num_value_heads|mamba_num_heads|mamba_n_heads|index_n_heads|n_mamba_heads", _HEADS),
    (r"(.*_)?(num_)?(attention_)?heads?|.*attention_heads|n_heads?|num_heads_.*|.*_num_heads|num_attention_heads.*",
     _HEADS),
    (r"qk_rope_head_dim|index_head_dim", _HEAD_DIM),
    (r"(qk_nope|v)_head_dim|linear_(key|value)_head_dim|rotary_dim", 8),
    (r"(.*_)?head_dim|kv_channels|attention_key_value_channels|d_kv|attention_head_size|.*head_size",
     _HEAD_DIM),
    (r"(q|kv|o)_lora_rank|.*lora_rank.*|.*_rank", 16),
    (r"n_group|topk_group|num_expert_group|n_routing_groups|num_groups_moe", 1),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|n_experts_per_tok|experts_per_token|expert_top_k|"
     r"moe_top_k", 2),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_total_experts", 4),
    (r"n_shared_experts|moe_num_shared_experts|num_shared_expert", 1),
    (r".*(moe|expert).*intermediate_size|expert_ffn_hidden_size|ffn_dim_expert", 32),
    (r".*intermediate_size.*|.*ffn_dim.*|d_ff|n_inner|.*ffn_hidden_size|d_inner|dim_feedforward|.*mlp_dim|"
     r"encoder_intermediate_dim|hidden_dim_ffn|filter_size|ffn_hidden_dim|.*feedforward_size|feed_forward_.*size",
     _WIDTH),
    (r"(.*_)?vocab_size(_.*)?|num_embeddings|.*_vocab_size", _VOCABULARY),
    (r"codebook_size", 256),
    (r"num_hidden_groups|inner_group_num|num_decoder_groups", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"(.*_)?(full_attention_interval|attn_layer_period|layer_period|hybrid_.*period|global_attn_every_n_layers)", 2),
    (r"(.*_)?(attn_layer_offset|expert_layer_offset)", 1),
    (r".*layers?(_.*)?|depth|n_layers?|.*num_blocks|num_stages_layers|.*_depth", _LAYERS),
    (r"(.*_)?(hidden_size|embed_dim|embedding_size|hidden_dim|d_model|n_embd|dim|projection_dim|proj_dim|latent_dim|"
     r"embed_size|hidden_channels|decoder_hidden_size|model_dim|out_hidden_size|mm_tokens.*_dim|proj_size|"
     r"emb_dim|feature_size|d_embed|channels|pooling_output_dim|output_dim|bottleneck_size|lowrank_size|fpn_hidden_size|"
     r"conv_dim|hidden_size_per_layer_input|d_latents|qk_channels|v_channels|ple_dim)(_.*)?", _HIDDEN),
    (r"(max|n)_.*positions?.*|.*max_position.*|n_ctx|seq_length|max_seq_len|max_sequence_length|block_size", 512),
    (r"(.*_)?image_size|input_size|img_size|patch_image_size|crop_size|.*_image_size", 64),
    (r"(.*_)?patch_size|vision_patch_size", 16),
    (r"(mamba_)?(d_)?state_size|mamba_d_state|ssm_state_size|state_dim", 16),
    (r"mamba_(d_)?head(_dim)?|mamba_head_dim", _HEAD_DIM),
    (r"mamba_d_ssm", 2 * _HIDDEN),
    (r"(mamba_)?chunk_size", 16),
    (r"mamba_n_groups|n_groups|mamba_ngroups", 1),
    (r"num_quer(y_tokens|ies)|num_latents|num_query_tokens|num_image_tokens|query_length|num_object_queries", 12),
    (r"num_mel_bins|n_mels|feature_projection_input_dim|input_feat_per_channel|num_mel_channels", 16),
    (r"num_codebooks", 2),
    (r"num_frames", 4),
    (r"num_conv_pos_embeddings", 16),
    (r"num_conv_pos_embedding_groups", 4),
]  # fmt: skip
_LISTS: list[tuple[str, str]] = [
    (r"conv_dim|conv_depths", "same"),
    (r"depths|layers_per_stage|num_layers_per_stage|n_layers_per_stage|num_blocks", "layers"),
    (r".*hidden_sizes|embed_dims?|dims|hidden_dims|.*channels|stem_.*|widths|.*_dim", "widths"),
    (r".*num_attention_heads|num_heads|heads", "heads"),
]
_DERIVED = re.compile(
    r"model_type|transformers_version|architectures|dtype|_name_or_path|.*layer_types|qk_head_dim|no_rope_layers|layers_block_type|id2label|label2id|_?out_(features|indices)|stage_names|"
    r"per_layer_config|.*_per_layer|activation_sparsity_pattern|kv_source_layers"
)
# Sizes that some configurations leave out.
_MISSING: dict[str, Any] = {
    "head_dim": _HEAD_DIM,
    "num_key_value_heads": _HEADS,
    "vocab_size": _VOCABULARY,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "prediction_length": 8,
    "moe_topk": 2,
    "moe_num_shared_experts": 1,
    "num_experts": 4,
}
# Model types whose settings depend on each other.
_SPECIAL: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "esmc": {"num_key_value_heads": _HEADS},
    "glm5_next_text": {"num_key_value_heads": _HEADS},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16},
    "bamba": {"mamba_d_head": 32, "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_d_head": 32, "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8},
    "zamba": {"layers_block_type": ["mamba", "hybrid"], "layer_types": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "layer_types": ["mamba", "hybrid"]},
    "hy_v4_vl_text": {"num_key_value_heads": _HEADS},
    "reformer": {"is_decoder": True},
    "mimi": {"num_filters": 16},
    "chameleon": {"vocabulary_map": {}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "dots3_note_text": {"num_key_value_heads": _HEADS},
    "blip-2": {"image_token_id": 299},
    "instructblip": {"image_token_id": 299},
    "instructblipvideo": {"video_token_id": 299},
    "esm": {"pad_token_id": 1, "mask_token_id": 4},
    "layoutlmv3": {"coordinate_size": 10, "shape_size": 12},
    "lilt": {"hidden_size": 96},
    "llama4_vision_model": {
        "intermediate_size": 256,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    },
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "mllama_vision_model": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 192},
    "voxtral": {"audio_token_id": 299},
    "voxtral_encoder": {"intermediate_size": 256},
    "llava_next": {"image_grid_pinpoints": [[64, 128], [128, 64]]},
    "llava_next_video": {"image_grid_pinpoints": [[64, 128], [128, 64]]},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 64},
    "lxmert": {"num_qa_labels": 4, "num_object_labels": 4, "num_attr_labels": 4},
}
_TOKEN = re.compile(r".*token_(id|index)s?|.*_token|.*_idx|.*(bos|eos|pad|sep|cls|mask)_id")


def shrink(model_type: str) -> PreTrainedConfig:
    """Return a tiny configuration of a model type; sizes, and tokens beyond the vocabulary, are replaced by name."""
    return _shrink(CONFIG_MAPPING[model_type])


def _shrink(config_class: type[PreTrainedConfig], default: PreTrainedConfig | None = None) -> PreTrainedConfig:
    default = config_class() if default is None else default
    parts = {
        name: shrink("resnet") if "timm" in value.model_type else _shrink(type(value), value)
        for name in (config_class.sub_configs or {})
        if isinstance(value := getattr(default, name, None), PreTrainedConfig)
    }
    given = default.to_dict()
    counts = [given.get(name) for name in ("num_hidden_layers", "num_layers", "n_layer")]
    # Stages of one layer each stay; other layers become few.
    has_stages = isinstance(given.get("depths"), (list, tuple))
    staged = {"out_features": given["out_features"]} if has_stages and "out_features" in given else {}
    num_layers = {count for count in counts if isinstance(count, int) and count > 1 and not has_stages}
    settings = {
        name: _small(name, value, num_layers)
        for name, value in given.items()
        if name not in parts and not _DERIVED.fullmatch(name)
    }
    settings |= staged | _layer_types(default, settings)
    if has_stages and isinstance(settings.get("window_size"), int):
        settings["window_size"] = 2
    if settings.get("kv_lora_rank"):
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    rope = settings.get("rope_parameters")
    if "mrope_section" in str(rope) or re.search("glm.*(v|ocr|image)|vl|omni|colqwen", config_class.model_type):
        rotary = int(settings.get("head_dim", _HEAD_DIM) * (rope or {}).get("partial_rotary_factor", 1.0)) // 2
        settings["rope_parameters"] = {
            **(rope or {}),
            "mrope_section": [rotary - 2 * (rotary // 3), *[rotary // 3] * 2],
        }
    if "use_timm_backbone" in settings:
        settings |= {"use_timm_backbone": False, "backbone": None}
    return config_class(**{**parts, **settings, **_SPECIAL.get(config_class.model_type, {})})


def _layer_types(default: PreTrainedConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Return one layer of each type that a hybrid model has."""
    types = getattr(default, "layer_types", None)
    computed = [getattr(type(default), name, None) for name in ("layer_types", "layers_block_type")]
    is_computed = any(isinstance(one, property) for one in computed)
    if is_computed or not types or len(set(types)) == 1 or "num_hidden_layers" not in settings:
        return {}
    kinds = list(dict.fromkeys(types))
    return {"layer_types": kinds, "num_hidden_layers": len(kinds)}


def _small(name: str, value: Any, num_layers: Collection[int]) -> Any:
    if isinstance(value, dict):
        return {key: _small(str(key), item, num_layers) for key, item in value.items()}
    if value is None:
        return _MISSING.get(name)
    if isinstance(value, (list, tuple)) and len(value) in num_layers:
        return _small(name, list(value)[:_LAYERS], ())
    if isinstance(value, bool) or not isinstance(value, (int, list, tuple)):
        return value
    if _TOKEN.fullmatch(name):
        return _small_token(name, value)
    if isinstance(value, (list, tuple)):
        return _small_list(name, value)
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value


def _small_list(name: str, values: Iterable[Any]) -> Any:
    values = list(values)
    if not values or not all(type(value) is int for value in values):
        return values
    for pattern, kind in _LISTS:
        if re.fullmatch(pattern, name):
            if kind == "same":
                return [32] * len(values)
            if kind == "layers":
                return [1] * len(values)
            if kind == "heads":
                return [min(value, 2) for value in values]
            return [min(value, 32) for value in values] if len(set(values)) == 1 else _rising(values)
    return [_small(name, value, ()) for value in values]


def _rising(values: list[int]) -> list[int]:
    """Return small widths, the largest 64, that grow where those of the original do."""
    order = sorted(set(values))
    return [max(8, 64 // 2 ** (len(order) - 1 - order.index(value))) for value in values]


def _small_token(name: str, value: Any) -> Any:
    """Return a token inside the vocabulary; different names keep different tokens."""
    if isinstance(value, (list, tuple)):
        return [_small_token(name, item) for item in value]
    return value if not isinstance(value, int) or value < 200 else 200 + (sum(name.encode()) % 100)
