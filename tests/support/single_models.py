"""Arguments of tiny models of sound, images, detection and text in layouts of their own, as rows of the zoo.

Each has at least two layers, and every head of a layer its own random parameters.
"""

from typing import Any

from tests.support.multimodal_models import BART, BERT, IDS, IMAGES
from tests.support.versions import OLDER

__all__ = ["AUDIO", "GENERATING", "SEQ2SEQ", "SINGLE", "TEXT"]

TEXT: dict[str, Any] = {**BERT, "vocab_size": 99, "num_attention_heads": 4, "max_position_embeddings": 64}
GPT: dict[str, Any] = {"vocab_size": 99, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_ctx": 64, **IDS}
SEQ2SEQ: dict[str, Any] = {
    **BART,
    "vocab_size": 99,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
}
AUDIO: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    **IDS,
}
ENCODER: dict[str, Any] = {
    "num_mel_bins": 8,
    "d_model": 32,
    "hidden_size": 32,
    "encoder_layers": 2,
    "num_hidden_layers": 2,
    "encoder_attention_heads": 4,
    "num_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "intermediate_size": 128,
    "max_source_positions": 16,
}
SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 1.0,
}
RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 8, 8],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
DETR: dict[str, Any] = {
    **{key: SEQ2SEQ[key] for key in SEQ2SEQ if key.startswith(("encoder", "decoder"))},
    "d_model": 32,
    "hidden_size": 32,
    "num_queries": 5,
    "num_labels": 4,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": {**RESNET, "out_features": ["stage4"]},
}
HYBRID: dict[str, Any] = {
    **DETR,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [8, 8, 8],
    "decoder_in_channels": [32, 32, 32],
    "encoder_layers": 2,
    "num_denoising": 0,
    "backbone_config": {**RESNET, "model_type": "rt_detr_resnet"},
}
GROUNDING: dict[str, Any] = {
    **DETR,
    "backbone_config": {**SWIN, "model_type": "swin", "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "embed_dim": 8,
        "image_size": 64, "out_features": ["stage2", "stage3", "stage4"]},
    "text_config": {**TEXT, "model_type": "bert"},
    "max_text_len": 64,
}  # fmt: skip

# The class of the model, that of its configuration, and its arguments.
SINGLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "detr": ("DetrForObjectDetection", "DetrConfig", DETR),
    "conditional_detr": ("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", DETR),
    "deformable_detr": ("DeformableDetrForObjectDetection", "DeformableDetrConfig", {**DETR, "num_feature_levels": 3,
        "backbone_config": RESNET}),
    "dab_detr": ("DabDetrForObjectDetection", "DabDetrConfig", DETR),
    "table_transformer": ("TableTransformerForObjectDetection", "TableTransformerConfig", DETR),
    # Older versions run one layer alone.
    "rt_detr": ("RTDetrForObjectDetection", "RTDetrConfig", {**HYBRID, "encoder_layers": 1 if OLDER else 2}),
    "rt_detr_v2": ("RTDetrV2ForObjectDetection", "RTDetrV2Config", {**HYBRID, "encoder_layers": 1 if OLDER else 2}),
    "grounding_dino": ("GroundingDinoForObjectDetection", "GroundingDinoConfig", GROUNDING),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", {"num_encoder_blocks": 2, "depths": [2, 2],
        "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [1, 1],
        "num_attention_heads": [2, 4], "decoder_hidden_size": 16}),
    "ast": ("ASTForAudioClassification", "ASTConfig", {**IMAGES, "max_length": 32, "num_mel_bins": 16,
        "frequency_stride": 4, "time_stride": 4}),
    "wav2vec2_bert": ("Wav2Vec2BertForCTC", "Wav2Vec2BertConfig", {**AUDIO, "feature_projection_input_dim": 8,
        "position_embeddings_type": "relative", "conv_depthwise_kernel_size": 3}),
    "wav2vec2_conformer": ("Wav2Vec2ConformerForCTC", "Wav2Vec2ConformerConfig", {**AUDIO,
        "conv_depthwise_kernel_size": 3}),
    "conformer_rotary": ("Wav2Vec2ConformerForCTC", "Wav2Vec2ConformerConfig", {**AUDIO, "conv_depthwise_kernel_size":
        3, "position_embeddings_type": "rotary"}),
    "wavlm": ("WavLMForCTC", "WavLMConfig", {**AUDIO, "num_buckets": 16, "max_bucket_distance": 20}),
    "parakeet": ("ParakeetForCTC", "ParakeetCTCConfig", {"vocab_size": 32, "pad_token_id": 0, "encoder_config":
        {**ENCODER, "subsampling_conv_channels": 8, "conv_kernel_size": 3}}),
    "voxtral": ("VoxtralForConditionalGeneration", "VoxtralConfig", {"audio_config": ENCODER, "text_config": {**TEXT,
        "model_type": "llama", "num_key_value_heads": 2}, "audio_token_id": 90}),
    "qwen2_audio": ("Qwen2AudioForConditionalGeneration", "Qwen2AudioConfig", {"audio_config": ENCODER, "text_config":
        {**TEXT, "model_type": "qwen2", "num_key_value_heads": 2}, "audio_token_index": 90}),
    "layoutlmv3": ("LayoutLMv3ForTokenClassification", "LayoutLMv3Config", {**TEXT, "input_size": 16, "patch_size": 8,
        "coordinate_size": 8, "shape_size": 8, "max_2d_position_embeddings": 128, "pad_token_id": 1}),
    "lilt": ("LiltForTokenClassification", "LiltConfig", {**TEXT, "channel_shrink_ratio": 2,
        "max_2d_position_embeddings": 128}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {**TEXT, "hidden_size": 64, "num_key_value_heads": 2,
        "qk_layernorm": True}),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", {**TEXT, "num_layers": 2, "num_heads": 4, "window_size": 4,
        "attention_types": [[["global", "local"], 1]]}),
    "glm4_moe": ("Glm4MoeForCausalLM", "Glm4MoeConfig", {**TEXT, "num_key_value_heads": 2, "head_dim": 8,
        "use_qk_norm": True, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}),
    "led": ("LEDForConditionalGeneration", "LEDConfig", {**SEQ2SEQ, "attention_window": 4,
        "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}),
    "longformer": ("LongformerForSequenceClassification", "LongformerConfig", {**TEXT, "attention_window": 4,
        "sep_token_id": 2}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 99, "hidden_size": 48, "n_layer": 2, "n_head": 4,
        **IDS}),
    "mpt": ("MptForCausalLM", "MptConfig", {"vocab_size": 99, "d_model": 48, "n_layers": 2, "n_heads": 4,
        "max_seq_len": 64, "expansion_ratio": 1, **IDS}),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", {**GPT, "n_head": 8, "n_embd": 64, "rotary_dim": 4}),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Config", SWIN),
    "hiera": ("HieraForImageClassification", "HieraConfig", {"embed_dim": 16, "image_size": [32, 32], "patch_stride":
        [4, 4], "depths": [1, 2], "num_heads": [2, 4], "embed_dim_multiplier": 2.0, "query_stride": [2, 2],
        "num_query_pool": 1, "masked_unit_size": [4, 4], "masked_unit_attention": [True, False], "mlp_ratio": 1.0}),
    "eomt": ("EomtForUniversalSegmentation", "EomtConfig", {**IMAGES, "num_queries": 5, "num_blocks": 1,
        "num_upscale_blocks": 1}),
    "openai_gpt": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", GPT),
    "ctrl": ("CTRLLMHeadModel", "CTRLConfig", {**GPT, "dff": 40}),
    "xlm": ("XLMWithLMHeadModel", "XLMConfig", {"n_words": 99, "emb_dim": 48, "n_layers": 2, "n_heads": 4,
        "max_position_embeddings": 64}),
    "big_bird": ("BigBirdForCausalLM", "BigBirdConfig", {**TEXT, "attention_type": "original_full", "is_decoder":
        True}),
    "bigbird_pegasus": ("BigBirdPegasusForConditionalGeneration", "BigBirdPegasusConfig", {**SEQ2SEQ, "attention_type":
        "original_full"}),
    "funnel": ("FunnelForMaskedLM", "FunnelConfig", {"vocab_size": 99, "block_sizes": [1, 1], "num_decoder_layers": 1,
        "d_model": 48, "n_head": 4, "d_head": 8, "d_inner": 40}),
    "cpmant": ("CpmAntForCausalLM", "CpmAntConfig", {"vocab_size": 99, "hidden_size": 48, "num_attention_heads": 4,
        "dim_head": 8, "dim_ff": 40, "num_hidden_layers": 2, "prompt_length": 4}),
    "moshi": ("MoshiForCausalLM", "MoshiConfig", {**TEXT, "num_key_value_heads": 2, "head_dim": 12, "ffn_dim": 40}),
    "laguna": ("LagunaForCausalLM", "LagunaConfig", {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 40}),
}  # fmt: skip
# Sizes that do not divide each other: a wrong count of rows would not fit anywhere by chance.
UNEVEN: dict[str, Any] = {**TEXT, "hidden_size": 44, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}  # fmt: skip
SLIDING: dict[str, Any] = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
T5: dict[str, Any] = {"vocab_size": 99, "d_model": 44, "d_kv": 10, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2,
    "num_heads": 6, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}  # fmt: skip
SAM: dict[str, Any] = {
    "vision_config": {**IMAGES, "hidden_size": 36, "num_attention_heads": 3, "output_channels": 24, "window_size": 2,
        "image_size": 32, "patch_size": 8, "global_attn_indexes": [1], "mlp_dim": 40, "num_pos_feats": 12},
    "prompt_encoder_config": {"hidden_size": 24, "image_size": 32, "patch_size": 8, "image_embedding_size": 4},
    "mask_decoder_config": {"hidden_size": 24, "num_attention_heads": 3, "mlp_dim": 40, "iou_head_hidden_dim": 24,
        "vit_dim": 36},
}  # fmt: skip
SINGLE |= {
    "openai_privacy_filter": ("OpenAIPrivacyFilterForTokenClassification", "OpenAIPrivacyFilterConfig", {**UNEVEN,
        **EXPERTS, "sliding_window": 3}),
    "afmoe": ("AfmoeForCausalLM", "AfmoeConfig", {**UNEVEN, **EXPERTS, **SLIDING}),
    "lfm3": ("Lfm3ForCausalLM", "Lfm3Config", {**UNEVEN, **SLIDING}),
    "flint": ("FlintForCausalLM", "FlintConfig", {**UNEVEN, **EXPERTS, **SLIDING}),
    "beam": ("BeamForCausalLM", "BeamConfig", {**UNEVEN, **EXPERTS, **SLIDING, "n_group": 2, "topk_group": 1}),
    "granite_swa": ("GraniteSWAForCausalLM", "GraniteSWAConfig", {**UNEVEN, **SLIDING}),
    "granitemoe_swa": ("GraniteMoeSWAForCausalLM", "GraniteMoeSWAConfig", {**UNEVEN, **EXPERTS, **SLIDING}),
    "muse_spark_text": ("MuseSparkTextModel", "MuseSparkTextConfig", {**UNEVEN, **EXPERTS, **SLIDING,
        "hidden_size": 42, "moe_hidden_size": 28}),
    "muse_glimmer_text": ("MuseGlimmerTextModel", "MuseGlimmerTextConfig", {**UNEVEN, **SLIDING,
        "hidden_size": 42}),
    "switch_transformers": ("SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig", {**T5,
        "num_experts": 2, "expert_capacity": 64, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}),
    "udop": ("UdopForConditionalGeneration", "UdopConfig", {**T5, "image_size": 16, "patch_size": 8,
        "max_2d_position_embeddings": 64}),
    "pop2piano": ("Pop2PianoForConditionalGeneration", "Pop2PianoConfig", T5),
    "fsmt": ("FSMTForConditionalGeneration", "FSMTConfig", {**SEQ2SEQ, "src_vocab_size": 99, "tgt_vocab_size": 99,
        "d_model": 60, "encoder_attention_heads": 6, "decoder_attention_heads": 6}),
    "exaone4_5_vision": ("Exaone4_5_VisionModel", "Exaone4_5_VisionConfig", {"depth": 2, "hidden_size": 48,
        "num_heads": 6, "num_key_value_heads": 3, "intermediate_size": 40, "out_hidden_size": 32, "patch_size": 4,
        "fullatt_block_indexes": [1], "window_size": 16}),
    "sam": ("SamModel", "SamConfig", SAM),
    "sam_hq": ("SamHQModel", "SamHQConfig", SAM),
    "got_ocr2": ("GotOcr2ForConditionalGeneration", "GotOcr2Config", {"vision_config": {**SAM["vision_config"],
        "output_channels": 8}, "text_config": {**TEXT, "model_type": "qwen2", "num_key_value_heads": 2},
        "image_token_id": 90}),
    "vitdet": ("VitDetModel", "VitDetConfig", {**IMAGES, "hidden_size": 36, "num_attention_heads": 3, "window_size": 2,
        "pretrain_image_size": 16, "window_block_indices": [0], "use_relative_position_embeddings": True}),
    "qianfan_ocr_vision": ("QianfanOCRVisionModel", "QianfanOCRVisionConfig", {**IMAGES, "hidden_size": 36,
        "num_attention_heads": 3, "image_size": [16, 16], "patch_size": [8, 8]}),
    "timesformer": ("TimesformerForVideoClassification", "TimesformerConfig", {**IMAGES, "hidden_size": 36,
        "num_attention_heads": 3, "num_frames": 2}),
    "pix2struct": ("Pix2StructForConditionalGeneration", "Pix2StructConfig", {
        "vision_config": {"hidden_size": 60, "patch_embed_hidden_size": 48, "d_ff": 40, "d_kv": 10, "num_hidden_layers":
            2, "num_attention_heads": 6, "patch_size": 4},
        "text_config": {"vocab_size": 99, "hidden_size": 60, "d_kv": 10, "d_ff": 40, "num_layers": 2, "num_heads": 6,
            **IDS}}),
}  # fmt: skip
GENERATING = frozenset(
    {"voxtral", "stablelm", "gpt_neo", "glm4_moe", "led", "bloom", "mpt", "codegen", "openai_gpt", "ctrl", "xlm"}
    | {"big_bird", "bigbird_pegasus", "cpmant", "moshi", "laguna", "afmoe", "lfm3", "flint", "beam", "granite_swa"}
    | {"granitemoe_swa", "switch_transformers", "udop", "fsmt", "got_ocr2", "pix2struct"}
)
