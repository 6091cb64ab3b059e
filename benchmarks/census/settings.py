"""Values for the settings of tiny models, by their names, for configurations of any model type."""

import re
from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """Sizes of a tiny model.

    Attributes:
        hidden: Width of the hidden states.
        heads: Number of attention heads of a layer.
        key_value_heads: Number of heads of keys and values where queries share them.
        head_dim: Width of a head.
        width: Number of feed-forward neurons of a layer.
        layers: Number of layers.
        vocabulary: Number of tokens.
    """

    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    width: int
    layers: int = 2
    vocabulary: int = 320

    def of(self, value: Any) -> Any:
        """Return a value with the sizes that it names, among them ``half`` of the hidden states, and ``two_heads``."""
        if isinstance(value, list):
            return [self.of(item) for item in value]
        named = {**self._asdict(), "half": self.hidden // 2, "two_heads": 2 * self.head_dim}
        return named.get(value, value) if isinstance(value, str) else value


# Powers of two suit nearly all types. The other sizes are multiples of four, for products in groups, and the rows of a
# few heads, or neurons, do not divide by chance.
SIZES = (Sizes(64, 4, 2, 16, 96), Sizes(120, 6, 2, 20, 108))

# The first pattern that matches a name in full decides; larger numbers than the value become the value. A name is that
# of a size.
VALUES: list[tuple[str, int | str]] = [
    (r"num_feat_extract_layers", 13),
    (r"d_head", "head_dim"),
    (r"patch_embed_hidden_size", 768),
    (r".*upsample_groups", "hidden"),
    (r".*num_key_value_heads|num_kv_heads|n_head_kv|.*_kv_heads|num_global_key_value_heads", "key_value_heads"),
    (r"linear_num_key_heads|linear_num_value_heads|mamba_num_heads|mamba_n_heads|index_n_heads|n_mamba_heads", "heads"),
    (r"(.*_)?(num_)?(attention_)?heads?|.*attention_heads|n_heads?|num_heads_.*|.*_num_heads|num_attention_heads.*",
     "heads"),
    (r"qk_rope_head_dim|index_head_dim", "head_dim"),
    (r"(qk_nope|v)_head_dim|linear_(key|value)_head_dim|rotary_dim", 8),
    (r"(.*_)?head_dim|kv_channels|attention_key_value_channels|d_kv|attention_head_size|.*head_size",
     "head_dim"),
    (r"(q|kv|o)_lora_rank|.*lora_rank.*|.*_rank", 16),
    (r"n_group|topk_group|num_expert_group|n_routing_groups|num_groups_moe", 1),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|n_experts_per_tok|experts_per_token|expert_top_k|"
     r"moe_top_k", 2),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_total_experts", 4),
    (r"n_shared_experts|moe_num_shared_experts|num_shared_expert", 1),
    (r".*(moe|expert).*intermediate_size|expert_ffn_hidden_size|ffn_dim_expert", 32),
    (r".*intermediate_size.*|.*ffn_dim.*|d_ff|n_inner|.*ffn_hidden_size|d_inner|dim_feedforward|.*mlp_dim|"
     r"encoder_intermediate_dim|hidden_dim_ffn|filter_size|ffn_hidden_dim|.*feedforward_size|feed_forward_.*size",
     "width"),
    (r"(.*_)?vocab_size(_.*)?|num_embeddings|.*_vocab_size", "vocabulary"),
    (r"codebook_size", 256),
    (r"num_hidden_groups|inner_group_num|num_decoder_groups", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"(.*_)?(full_attention_interval|attn_layer_period|layer_period|hybrid_.*period|global_attn_every_n_layers)", 2),
    (r"(.*_)?(attn_layer_offset|expert_layer_offset)", 1),
    (r".*layers?(_.*)?|depth|n_layers?|.*num_blocks|num_stages_layers|.*_depth", "layers"),
    (r"(.*_)?(hidden_size|embed_dim|embedding_size|hidden_dim|d_model|n_embd|dim|projection_dim|proj_dim|latent_dim|"
     r"embed_size|hidden_channels|projection_size|decoder_hidden_size|model_dim|out_hidden_size|mm_tokens.*_dim|proj_size|"
     r"emb_dim|feature_size|d_embed|channels|pooling_output_dim|output_dim|bottleneck_size|lowrank_size|fpn_hidden_size|"
     r"conv_dim|hidden_size_per_layer_input|d_latents|qk_channels|v_channels|ple_dim)(_.*)?", "hidden"),
    (r"(max|n)_.*positions?.*|.*max_position.*|n_ctx|seq_length|max_seq_len|max_sequence_length|block_size", 512),
    (r"(.*_)?image_size|input_size|img_size|patch_image_size|crop_size|.*_image_size", 64),
    (r"(.*_)?patch_size|vision_patch_size", 16),
    (r"(mamba_)?(d_)?state_size|mamba_d_state|ssm_state_size|state_dim", 16),
    (r"mamba_(d_)?head(_dim)?|mamba_head_dim", "head_dim"),
    (r"mamba_d_ssm", 128),
    (r"(mamba_)?chunk_size", 16),
    (r"mamba_n_groups|n_groups|mamba_ngroups", 1),
    (r"num_quer(y_tokens|ies)|num_latents|num_query_tokens|num_image_tokens|query_length|num_object_queries", 12),
    (r"num_mel_bins|n_mels|feature_projection_input_dim|input_feat_per_channel|num_mel_channels", 16),
    (r"num_codebooks", 2),
    (r"num_frames", 4),
    (r"num_conv_pos_embeddings", 16),
    (r"num_conv_pos_embedding_groups", 4),
]  # fmt: skip
LISTS: list[tuple[str, str]] = [
    (r"conv_dim|conv_depths", "same"),
    (r"depths|layers_per_stage|num_layers_per_stage|n_layers_per_stage|num_blocks", "layers"),
    (r".*hidden_sizes|embed_dims?|dims|hidden_dims|.*channels|widths|.*_dim", "widths"),
    (r".*num_attention_heads|num_heads|heads", "heads"),
]
DERIVED = re.compile(
    r"model_type|transformers_version|architectures|dtype|_name_or_path|.*layer_types|qk_head_dim|no_rope_layers|layers_block_type|id2label|label2id|_?out_(features|indices)|stage_names|"
    r"per_layer_config|.*_per_layer|activation_sparsity_pattern|kv_source_layers|dim_bbox.*|.*_in_channels|feature_size"
)
# Sizes that some configurations leave out.
MISSING: dict[str, Any] = {
    "head_dim": "head_dim",
    "num_key_value_heads": "heads",
    "vocab_size": "vocabulary",
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "prediction_length": 8,
    "moe_topk": 2,
    "moe_num_shared_experts": 1,
    "num_experts": 4,
}
# Model types whose settings depend on each other.
SPECIAL: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "esmc": {"num_key_value_heads": "heads"},
    "glm5_next_text": {"num_key_value_heads": "heads"},
    "falcon_h1": {"mamba_d_ssm": "hidden", "mamba_d_head": "head_dim"},
    "bamba": {"mamba_d_head": "two_heads", "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_d_head": "two_heads", "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8},
    "zamba": {"layers_block_type": ["mamba", "hybrid"], "layer_types": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "layer_types": ["mamba", "hybrid"]},
    "hy_v4_vl_text": {"num_key_value_heads": "heads"},
    "mimi": {"num_filters": 16},
    "chameleon": {"vocabulary_map": {}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "dots3_note_text": {"num_key_value_heads": "heads"},
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
    "align_vision_model": {
        "in_channels": [32, 16, 24, 40, 80, 112, 192],
        "out_channels": [16, 24, 40, 80, 112, 192, 320],
        "num_block_repeats": [1] * 7,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_dim": 1280,
    },
    "align": {"projection_dim": 320},
    "bloom": {"hidden_size": "hidden"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "depth_anything": {"neck_hidden_sizes": [32], "reassemble_factors": [1]},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "hgnet_v2": {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 16, 32, 64],
        "stage_mid_channels": [16] * 4,
        "stage_out_channels": [16, 32, 64, 64],
        "hidden_sizes": [16, 32, 64, 64],
    },
    "d_fine": {"encoder_in_channels": [32, 64, 64], "decoder_in_channels": ["hidden"] * 3},
    "kimi_linear": {"num_experts_per_token": 2},
    "bailing_hybrid": {"num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mistral4": {"qk_rope_head_dim": 16, "head_dim": 32},
    "pp_formulanet_vision": {"post_conv_in_channels": "hidden"},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "rt_detr": {"encoder_in_channels": [16, 32, 64], "decoder_in_channels": ["hidden"] * 3},
    "rt_detr_v2": {"encoder_in_channels": [16, 32, 64], "decoder_in_channels": ["hidden"] * 3},
    "sam_prompt_encoder": {"image_embedding_size": 4},
    "sam_hq_prompt_encoder": {"image_embedding_size": 4},
    "sam_vision_model": {"num_pos_feats": "half"},
    "sam_hq_vision_model": {"num_pos_feats": "half"},
    "sam2_hiera_det_model": {"window_size_per_stage": [2, 2, 2, 2], "blocks_per_stage": [1, 1, 1, 1]},
    "sam3_lite_text_text_model": {"num_hidden_layers": 3},
    "step3p5": {"sliding_window": 8},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "voxtral": {"audio_token_id": 299},
    "voxtral_encoder": {"intermediate_size": 256},
    "llava_next": {"image_grid_pinpoints": [[64, 128], [128, 64]]},
    "llava_next_video": {"image_grid_pinpoints": [[64, 128], [128, 64]]},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 64},
    "lxmert": {"num_qa_labels": 4, "num_object_labels": 4, "num_attr_labels": 4},
}
TOKEN = re.compile(r".*token_(id|index)s?|.*_token|.*_idx|.*(bos|eos|pad|sep|cls|mask)_id")
