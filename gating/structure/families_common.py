"""Attention classes of common layouts, which transformers copies from model to model; the census proves each."""

from .attention_spec import Q_K_V_PROJ, AttentionSpec, Row, context_spec

__all__ = ["COMMON_FAMILIES"]


def _any_of(names: str, suffix: str = "Attention") -> str:
    """Return the pattern of the classes with these beginnings, separated by spaces, and one end."""
    return f"({'|'.join(names.split())}){suffix}"


_WITH_O_PROJ = """
    Apertus1p5Text CanaryCross CanarySelf Cohere2Moe CohereAsrCross CohereAsrSelf Cosmos3EdgeText Cwm Dots1
    EmbeddingGemma2 Ernie4_5_Moe Evolla ExaoneMoe Gemma4UnifiedText Glm4Moe GlmAsr GlmImageText GlmOcrText
    GraniteDoclingText Gte HYV3 HYV4VLVision HiggsAudioV2 HunYuanMoEV1 HunYuanVLDenseV1 HunYuanVLVision HyperCLOVAX
    Idefics Jais2 Kolibri1 LaraMini LasrEncoder Mellum Mimi MiniMaxM3VL Molmo2 NanoChat PaddleOCR PeAudioEncoder Pixio
    PocketTTS Qwen3OmniMoeThinkerText Radio RfDetr RfDetrDinov2 Sam3ViTRoPE SolarOpen T5Gemma2Self Tipsv2Vision
    Ultrabert UnlimitedOcrText VideoPrism Vivit VoxtralRealtime VoxtralRealtimeText
"""
_WITH_OUT_PROJ = """
    AudioFlamingo3 BigBirdPegasusDecoder GitVision GraniteDoclingVision IdeficsVision Lfm3VlVision MLCD MetaClip2
    MiniMaxM3VLVision MossTranscribeDiarizeAudio OmniASR PPFormulaNet PaddleOCRVision PatchTST PegasusX SeamlessM4T
    SeamlessM4Tv2 Speech2Text Tipsv2Text VJEPA2PoolerSelf VideoLlama3Vision Videomt
"""
_WITH_OUTPUT_BESIDE = """
    Canine Data2VecVision Data2VecVisionSdpa GLPNEfficient Git Luke MobileBert PvtEfficient RoCBert RoFormer Tapas
    VideoMAE Yolos Yoso
"""
_FUSED_VISION = """
    CohereCompassVision Glm5NextVision GlmImageVision GlmOcrVision Qwen3OmniMoeVision Qwen4ExpVision
"""

COMMON_FAMILIES: dict[str, Row] = {
    _any_of(_WITH_O_PROJ): AttentionSpec(Q_K_V_PROJ, "o_proj"),
    _any_of(_WITH_OUT_PROJ): AttentionSpec(Q_K_V_PROJ, "out_proj"),
    _any_of(_WITH_OUTPUT_BESIDE, "SelfAttention"): context_spec(),
    _any_of(_FUSED_VISION): AttentionSpec((("qkv", "qkv"),), "proj", returns="tensor"),
    "(Cosmos3EdgeVision|Qwen3OmniMoeAudio)Attention": AttentionSpec(Q_K_V_PROJ, "out_proj", returns="tensor"),
    "Kimi_K25VisionAttention": AttentionSpec(Q_K_V_PROJ, "proj", returns="tensor"),
    "(DecisionTransformerGPT2|ImageGPT)Attention": AttentionSpec(
        (("c_attn", "qkv"),), "c_proj", head_widths=("split_size",)
    ),
    "VitsAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", head_widths=("embed_dim",)),
    "GPTNeoXJapaneseAttention": AttentionSpec(
        (("query_key_value", "hqkv"),), "dense", head_dim="head_size", returns="unknown"
    ),
    "Phi4MultimodalAttention": AttentionSpec((("qkv_proj", "qkv"),), "o_proj", config_counts=("num_attention_heads",)),
    "VJEPA2RopeAttention": AttentionSpec(
        (("query", "q"), ("key", "k"), ("value", "v")), "proj", head_dim="attention_head_size"
    ),
    "MobileViTSelfAttention": AttentionSpec(
        (("query", "q"), ("key", "k"), ("value", "v")),
        "^output.dense",
        head_dim="attention_head_size",
        returns="unknown",
    ),
}
