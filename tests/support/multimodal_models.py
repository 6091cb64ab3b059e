"""Arguments of tiny models of several modalities: a row of :data:`tests.support.family_models.ZOO` each.

Each has at least two layers of attention in each tower, heads that do not fill the hidden size where a family allows
that, and images of a few patches.
"""

from typing import Any

__all__ = ["BART", "BERT", "DELTA", "IDS", "IMAGES", "MULTIMODAL"]

IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 256,
    **IDS,
}
TEXT: dict[str, Any] = {**BERT, "num_key_value_heads": 3, "head_dim": 8}
WIDE: dict[str, Any] = {**TEXT, "head_dim": 12}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
IMAGES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
}
CLIP: dict[str, Any] = {**IMAGES, "model_type": "clip_vision_model", "projection_dim": 16}
SIGLIP: dict[str, Any] = {**IMAGES, "model_type": "siglip_vision_model", "vision_use_head": False}
LLAMA: dict[str, Any] = {**WIDE, "model_type": "llama"}
QWEN2: dict[str, Any] = {**TEXT, "model_type": "qwen2"}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
QWEN_IMAGES: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 40,
    "out_hidden_size": 48,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
QWEN: dict[str, Any] = {"image_token_id": 99, "video_token_id": 98, "vision_start_token_id": 97}
PAIR: dict[str, Any] = {"text_config": {**BERT, "projection_dim": 16}, "vision_config": CLIP, "projection_dim": 16}
BART: dict[str, Any] = {
    "vocab_size": 120,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    **IDS,
}
LLAVA: dict[str, Any] = {"text_config": LLAMA, "vision_config": CLIP, "image_token_id": 99, "vision_feature_layer": -1}
QFORMER: dict[str, Any] = {
    "vision_config": IMAGES,
    "qformer_config": {**BERT, "encoder_hidden_size": 32, "cross_attention_frequency": 1},
    "text_config": {**BERT, "model_type": "opt", "ffn_dim": 40, "word_embed_proj_dim": 48},
    "num_query_tokens": 5,
    "image_token_id": 99,
}
DELTA: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}
GLM_IMAGES: dict[str, Any] = {**QWEN_IMAGES, "image_size": 16, "out_hidden_size": 48}
GEMMA: dict[str, Any] = {
    **WIDE,
    "num_hidden_layers": 6,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 120,
}
DECODER: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True}
START: dict[str, Any] = {"decoder_start_token_id": 1, "pad_token_id": 0}

# The class of the model, that of its configuration, and its arguments.
MULTIMODAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", {**QWEN, "text_config": {**TEXT, "rope_parameters":
        ROPE}, "vision_config": {**QWEN_IMAGES, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 1}}),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", {**QWEN, "text_config": {**TEXT,
        "rope_parameters": ROPE}, "vision_config": {**QWEN_IMAGES, "window_size": 16, "fullatt_block_indexes": [1]}}),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLConfig", {**QWEN, "text_config": {**TEXT, "rope_parameters":
        ROPE}, "vision_config": {**QWEN_IMAGES, "deepstack_visual_indexes": [0]}}),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeConfig", {**QWEN, "text_config": {**TEXT, **MOE,
        "rope_parameters": ROPE}, "vision_config": {**QWEN_IMAGES, "deepstack_visual_indexes": [0]}}),
    "qwen3_5-images": ("Qwen3_5ForConditionalGeneration", "Qwen3_5Config", {**QWEN, "text_config": {**WIDE, **DELTA,
        "head_dim": 16, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}, "vision_config": QWEN_IMAGES}),
    "gemma3-images": ("Gemma3ForConditionalGeneration", "Gemma3Config", {"text_config": WIDE, "vision_config": SIGLIP,
        "mm_tokens_per_image": 4, "image_token_id": 99}),
    "gemma3n": ("Gemma3nForCausalLM", "Gemma3nTextConfig", {**GEMMA, "intermediate_size": 40, "laurel_rank": 8,
        "altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]}),
    "gemma4": ("Gemma4ForConditionalGeneration", "Gemma4Config", {"text_config": {**GEMMA, "global_head_dim": 16,
        "num_global_key_value_heads": 2}, "vision_config": {**IMAGES, "head_dim": 12, "num_key_value_heads": 4,
        "pooling_kernel_size": 2, "position_embedding_size": 16, "default_output_length": 4, "use_clipped_linears":
        True}, "audio_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "output_proj_dims":
        48, "subsampling_conv_channels": [8, 4], "use_clipped_linears": True}, "image_token_id": 99, "audio_token_id":
        98, "video_token_id": 97}),
    # Full attention has no projection of values there: keys are the values, too.
    "gemma4-shared-values": ("Gemma4ForCausalLM", "Gemma4TextConfig", {**GEMMA, "global_head_dim": 16,
        "num_global_key_value_heads": 2, "attention_k_eq_v": True}),
    "mistral3": ("Mistral3ForConditionalGeneration", "Mistral3Config", {"text_config": {**WIDE, "model_type":
        "mistral"}, "vision_config": {**IMAGES, "model_type": "pixtral", "head_dim": 8}, "image_token_id": 99}),
    "pixtral": ("PixtralVisionModel", "PixtralVisionConfig", {**IMAGES, "head_dim": 8}),
    # transformers 5.24 cannot run the model of both towers: it asks the language model for the outputs of images.
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", {**WIDE, "intermediate_size_mlp": 40, "num_local_experts": 4,
        "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "attention_chunk_size": 32, "no_rope_layers": [1,
        0]}),
    "llama4_vision": ("Llama4VisionModel", "Llama4VisionConfig", {**IMAGES, "intermediate_size": 128,
        "vision_output_dim": 24, "projector_input_dim": 24, "projector_output_dim": 24, "pixel_shuffle_ratio": 0.5}),
    "smolvlm": ("SmolVLMForConditionalGeneration", "SmolVLMConfig", {"text_config": LLAMA, "vision_config": IMAGES,
        "scale_factor": 2, "image_token_id": 99}),
    "idefics2": ("Idefics2ForConditionalGeneration", "Idefics2Config", {"text_config": {**WIDE, "model_type":
        "mistral"}, "vision_config": IMAGES, "image_token_id": 99, "perceiver_config": {"hidden_size": 48,
        "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 6, "resampler_head_dim": 12,
        "num_key_value_heads": 3}}),
    "idefics3": ("Idefics3ForConditionalGeneration", "Idefics3Config", {"text_config": LLAMA, "vision_config": IMAGES,
        "scale_factor": 2, "image_token_id": 99}),
    "internvl": ("InternVLForConditionalGeneration", "InternVLConfig", {"text_config": QWEN2, "vision_config":
        {**IMAGES, "image_size": [16, 16], "patch_size": [4, 4]}, "image_token_id": 99}),
    "florence2": ("Florence2ForConditionalGeneration", "Florence2Config", {"text_config": {**BART, "model_type":
        "bart"}, "vision_config": {"depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3,
        1], "patch_prenorm": [False, True], "embed_dim": [16, 32], "num_heads": [2, 4], "num_groups": [2, 4],
        "window_size": 3, "projection_dim": 48, "max_temporal_embeddings": 4, "max_position_embeddings": 8},
        "image_token_id": 99}),
    "blip_2": ("Blip2ForConditionalGeneration", "Blip2Config", QFORMER),
    "instructblip": ("InstructBlipForConditionalGeneration", "InstructBlipConfig", QFORMER),
    "instructblipvideo": ("InstructBlipVideoForConditionalGeneration", "InstructBlipVideoConfig", {**QFORMER,
        "video_token_id": 99}),
    "llava": ("LlavaForConditionalGeneration", "LlavaConfig", LLAVA),
    "llava_next": ("LlavaNextForConditionalGeneration", "LlavaNextConfig", {**LLAVA, "image_grid_pinpoints": [[16,
        32]]}),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionConfig", {"text_config": QWEN2,
        "vision_config": SIGLIP, "image_grid_pinpoints": [[16, 32]], "image_token_id": 99, "video_token_id": 98}),
    "video_llava": ("VideoLlavaForConditionalGeneration", "VideoLlavaConfig", {**LLAVA, "video_token_id": 98,
        "image_token_index": 99, "video_token_index": 98}),
    "vipllava": ("VipLlavaForConditionalGeneration", "VipLlavaConfig", {"text_config": LLAMA, "vision_config": CLIP,
        "image_token_id": 99, "vision_feature_layers": [-1, -2]}),
    "paligemma": ("PaliGemmaForConditionalGeneration", "PaliGemmaConfig", {"text_config": {**WIDE, "model_type":
        "gemma"}, "vision_config": {**SIGLIP, "projection_dim": 48}, "projection_dim": 48, "image_token_id": 99}),
    "mllama": ("MllamaForConditionalGeneration", "MllamaConfig", {"text_config": {**TEXT, "num_hidden_layers": 4,
        "cross_attention_layers": [1, 3]}, "vision_config": {"hidden_size": 32, "num_hidden_layers": 2,
        "num_global_layers": 2, "attention_heads": 4, "intermediate_size": 40, "image_size": 16, "patch_size": 4,
        "vision_output_dim": 64, "intermediate_layers_indices": [0], "max_num_tiles": 4}, "image_token_id": 99}),
    "kosmos_2": ("Kosmos2ForConditionalGeneration", "Kosmos2Config", {"text_config": {"vocab_size": 120, "embed_dim":
        48, "layers": 2, "attention_heads": 6, "ffn_dim": 40, **IDS}, "vision_config": IMAGES, "latent_query_num": 5}),
    "kosmos_2_5": ("Kosmos2_5ForConditionalGeneration", "Kosmos2_5Config", {"text_config": {"vocab_size": 120,
        "embed_dim": 48, "layers": 2, "attention_heads": 6, "ffn_dim": 40, **IDS}, "vision_config": {"hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 12, "intermediate_size": 40, "patch_size": 4,
        "patch_embed_hidden_size": 48, "max_num_patches": 16}, "latent_query_num": 5}),
    "aria": ("AriaForConditionalGeneration", "AriaConfig", {"text_config": {**WIDE, "model_type": "aria_text",
        "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}, "vision_config": {**IMAGES, "model_type":
        "idefics3_vision"}, "projector_patch_to_query_dict": {16: 4}, "image_token_id": 99}),
    "chameleon": ("ChameleonForConditionalGeneration", "ChameleonConfig", {**TEXT, "vocabulary_map": {}, "vq_config":
        {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "resolution": 16, "base_channels": 32,
        "channel_multiplier": [1, 1], "num_res_blocks": 1}}),
    "deepseek_vl": ("DeepseekVLForConditionalGeneration", "DeepseekVLConfig", {"text_config": LLAMA, "vision_config":
        SIGLIP, "image_token_id": 99}),
    "glm4v": ("Glm4vForConditionalGeneration", "Glm4vConfig", {"text_config": {**TEXT, "rope_parameters": {**ROPE,
        "partial_rotary_factor": 1.0}}, "vision_config": GLM_IMAGES, "image_token_id": 99, "video_token_id": 98,
        "image_start_token_id": 97, "image_end_token_id": 96}),
    "ovis2": ("Ovis2ForConditionalGeneration", "Ovis2Config", {"text_config": QWEN2, "vision_config": {**IMAGES,
        "hidden_stride": 2, "vocab_size": 20}, "hidden_size": 48, "image_token_id": 99, "visual_indicator_token_ids":
        [90, 91, 92, 93, 94]}),
    "qwen2_5_omni": ("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniThinkerConfig", {"text_config": {**TEXT,
        "rope_parameters": ROPE}, "vision_config": {**QWEN_IMAGES, "window_size": 16, "fullatt_block_indexes": [1]},
        "audio_config": {"num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 40,
        "d_model": 32, "max_source_positions": 40, "n_window": 10, "output_dim": 48}, "image_token_id": 99,
        "video_token_id": 98, "audio_token_id": 97, "vision_start_token_id": 96, "audio_start_token_id": 95}),
    "siglip2": ("Siglip2Model", "Siglip2Config", {"text_config": BERT, "vision_config": {**SIGLIP, "model_type":
        "siglip2_vision_model", "hidden_size": 48, "vision_use_head": True, "num_patches": 16}}),
    "groupvit": ("GroupViTModel", "GroupViTConfig", {"text_config": BERT, "vision_config": {**IMAGES, "depths": [2, 2],
        "num_group_tokens": [4, 0], "num_output_groups": [4, 2]}, "projection_dim": 16, "projection_intermediate_dim":
        24}),
    "align": ("AlignTextModel", "AlignTextConfig", BERT),
    "clipseg": ("CLIPSegModel", "CLIPSegConfig", PAIR),
    "altclip": ("AltCLIPModel", "AltCLIPConfig", {**PAIR, "text_config": {**BERT, "project_dim": 16, "hidden_size":
        48}}),
    "chinese_clip": ("ChineseCLIPModel", "ChineseCLIPConfig", PAIR),
    "owlvit": ("OwlViTModel", "OwlViTConfig", PAIR),
    "xclip": ("XCLIPModel", "XCLIPConfig", {**PAIR, "vision_config": {**CLIP, "num_frames": 2, "mit_hidden_size": 16,
        "mit_num_attention_heads": 2, "mit_num_hidden_layers": 2, "mit_intermediate_size": 24},
        "prompt_num_attention_heads": 2, "prompt_layers": 2}),
    "flava": ("FlavaModel", "FlavaConfig", {"text_config": {**BERT, "hidden_size": 48}, "image_config": {**IMAGES,
        "hidden_size": 48}, "multimodal_config": {**BERT}, "hidden_size": 48, "projection_dim": 16}),
    "bridgetower": ("BridgeTowerModel", "BridgeTowerConfig", {"text_config": {**BERT, "hidden_size": 128,
        "num_attention_heads": 4}, "vision_config": {"hidden_size": 128, "num_hidden_layers": 2, "patch_size": 4,
        "image_size": 16}, "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2,
        "share_link_tower_layers": False}),
    "vilt": ("ViltForQuestionAnswering", "ViltConfig", {**BERT, "image_size": 16, "patch_size": 4,
        "max_image_length": -1}),
    # An encoder of images and a decoder of text.
    "trocr": ("VisionEncoderDecoderModel", "VisionEncoderDecoderConfig", {"encoder": {**IMAGES, "model_type": "deit"},
        "decoder": {"model_type": "trocr", "vocab_size": 120, "d_model": 32, "decoder_layers": 2,
        "decoder_attention_heads": 4, "decoder_ffn_dim": 40, "max_position_embeddings": 64,
        "cross_attention_hidden_size": 32, **DECODER, **IDS}, **START}),
    "donut": ("VisionEncoderDecoderModel", "VisionEncoderDecoderConfig", {"encoder": {"model_type": "donut-swin",
        "image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
        "mlp_ratio": 1.0}, "decoder": {**BART, "model_type": "mbart", "d_model": 32, "decoder_attention_heads": 4,
        **DECODER}, **START}),
}  # fmt: skip
