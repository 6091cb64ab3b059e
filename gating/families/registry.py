"""The registry of attention classes whose heads can be gated and removed, one row for each layout.

To add a family, add its row to a table in one of the files of this folder, and a tiny model to
``tests/support/family_models.py``.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from torch import nn

from gating.families.audio import AUDIO_FAMILIES
from gating.families.detection import DETECTION_FAMILIES
from gating.families.media import MEDIA_FAMILIES
from gating.families.rows import Q_K_V_PROJ, Row, check_row, context_spec
from gating.families.special import SPECIAL_FAMILIES
from gating.families.text import TEXT_FAMILIES
from gating.loader.layouts import AttentionSpec
from gating.loader.modules import original_class

__all__ = ["find_spec", "register_attention_spec", "registered_spec"]


def _any_of(names: str, suffix: str = "Attention") -> str:
    """Return the pattern of the classes with these beginnings, separated by spaces, and one end."""
    return f"({'|'.join(names.split())}){suffix}"


_WITH_O_PROJ = """
    Apertus1p5Text BltSelf CanaryCross CanarySelf Cohere2Moe CohereAsrCross CohereAsrSelf CohereCompass Cosmos3EdgeText
    Csm Cwm DeepseekOcr2Text DeepseekOcr2Vision DiaCross DiaSelf Dots1 EmbeddingGemma2 Emu3 Ernie4_5_Moe
    Ernie4_5_VLMoeText Evolla Exaone4_5_ ExaoneMoe Gemma4UnifiedText Glm4Moe GlmAsr GlmImageText GlmOcrText
    GradiumPhononTTS Granite4VisionText GraniteDoclingText Gte HYV3 HYV4VLVision HiggsAudioV2 HunYuanMoEV1
    HunYuanVLDenseV1 HunYuanVLVision HyperCLOVAX Idefics Jais2 Kolibri1 LaraMini LasrEncoder LightGlue Mellum Mimi
    MiniMaxM3VL Molmo2 Molmo2Vision MoonshineStreamingEncoder NanoChat NeuCodec PaddleOCR PeAudioEncoder
    PeAudioVideoEncoder PeVideoEncoder Pixio PocketTTS PocketTTSAudioTokenizer Qwen3OmniMoeCode2Wav
    Qwen3OmniMoeTalkerCodePredictor Qwen3OmniMoeThinkerText Radio RfDetr RfDetrDinov2 Sam3ViTRoPE SolarOpen T5Gemma2Self
    TimesFm2_5 Tipsv2Vision Ultrabert UnlimitedOcrText VideoPrism Vivit VoxtralRealtime VoxtralRealtimeText Xcodec2
"""
_WITH_OUT_PROJ = """
    AudioFlamingo3 BigBirdPegasusDecoder GitVision GraniteDoclingVision IdeficsVision Inkling2Vision Lfm3VlVision MLCD
    MetaClip2 MiniCPMOcrVision MiniCPMV4_6Vision MiniCPMV4_7Vision MiniMaxM3VLVision MossTranscribeDiarizeAudio Musicgen
    MusicgenMelody OmniASR PPFormulaNet PaddleOCRVision PatchTSMixer PatchTST PegasusX Phi4MultimodalVision
    Sam3LiteTextText SeamlessM4T SeamlessM4Tv2 Speech2Text Step3p7Vision Tipsv2Text UnlimitedOcr VJEPA2PoolerSelf
    VideoLlama3Vision Videomt
"""
_WITH_OUTPUT_BESIDE = """
    Canine DPT GLPNEfficient Git Luke MobileBert PvtEfficient RoFormer Tapas VideoMAE
    VitPoseBackbone Yolos Yoso
"""
_FUSED_VISION = """
    CohereCompassVision Dots3NoteVision Ernie4_5_VLMoeVision Glm5NextVision GlmImageVision GlmOcrVision
    Qwen3OmniMoeVision Qwen4ExpVision
"""

# Layouts that transformers copies between models; the census proves the classes whose models it can build.
_COMMON: dict[str, Row] = {
    _any_of(_WITH_O_PROJ): AttentionSpec(Q_K_V_PROJ, "o_proj"),
    _any_of(_WITH_OUT_PROJ): AttentionSpec(Q_K_V_PROJ, "out_proj"),
    _any_of(_WITH_OUTPUT_BESIDE, "SelfAttention"): context_spec(),
    _any_of(_FUSED_VISION): AttentionSpec((("qkv", "qkv"),), "proj", returns="tensor"),
    "(Cosmos3EdgeVision|Qwen3OmniMoeAudio|Qwen3ASRAudio)Attention": AttentionSpec(
        Q_K_V_PROJ, "out_proj", returns="tensor"
    ),
    "(Kimi_K25|MuseSpark|MuseGlimmer)VisionAttention": AttentionSpec(Q_K_V_PROJ, "proj", returns="tensor"),
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
_SHIPPED: dict[str, Row] = {
    **TEXT_FAMILIES,
    **MEDIA_FAMILIES,
    **_COMMON,
    **SPECIAL_FAMILIES,
    **AUDIO_FAMILIES,
    **DETECTION_FAMILIES,
}
_REGISTERED: dict[str, Row] = {}


def register_attention_spec(class_name: str, spec: AttentionSpec | Callable[[nn.Module], AttentionSpec | None]) -> None:
    """Register the layout of an attention class; a later row for the same pattern replaces the earlier one.

    Args:
        class_name: Name of the attention class, or a regular expression that matches it in full.
        spec: The layout of its heads, or a function that returns the layout for a module of the class, or None.

    Raises:
        ValueError: The name is no regular expression, or the spec has no pairs of paths and layouts.

    Example:
        >>> register_attention_spec("MyAttention", AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out"))
    """
    returns = getattr(spec, "returns", "pair")
    check_row(class_name, () if callable(spec) else getattr(spec, "projections", spec), returns=returns)
    _REGISTERED.pop(class_name, None)
    _REGISTERED[class_name] = spec
    _find_row.cache_clear()


def find_spec(module: nn.Module, *, shipped_only: bool = False) -> AttentionSpec | None:
    """Return the spec of an attention module, or None, by its class or the nearest ancestor with a row.

    An attribute ``attention_spec`` of the module, where discovery stores its findings, takes precedence.

    Args:
        module: Any module.
        shipped_only: Whether to ignore discovered specs and those that the user registered.

    Example:
        >>> find_spec(nn.Linear(2, 2)) is None
        True
    """
    own = getattr(module, "attention_spec", None)
    if isinstance(own, AttentionSpec) and not shipped_only:
        return own
    return registered_spec(module, shipped_only=shipped_only)


def registered_spec(module: nn.Module, *, shipped_only: bool = False) -> AttentionSpec | None:
    """Return the spec in the row of a module's class, or None; the arguments are those of :func:`find_spec`."""
    row = _find_row(original_class(type(module)), shipped_only)  # type: ignore[arg-type]
    return row if row is None or isinstance(row, AttentionSpec) else row(module)


@lru_cache(maxsize=4096)
def _find_row(attention_class: type, shipped_only: bool) -> Row | None:
    # Newest first: rows of the user precede those of the package.
    rows = [] if shipped_only else [*reversed(_REGISTERED.items())]
    rows += _SHIPPED.items()
    for ancestor in attention_class.__mro__:
        for pattern, spec in rows:
            if re.fullmatch(pattern, ancestor.__name__):
                return spec
    return None
