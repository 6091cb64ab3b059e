"""The registry of attention classes whose heads can be gated and removed, one row for each layout.

Layouts that transformers copies from model to model are here, by the beginnings of the names of classes; the census
proves those whose models it can build. To add a family, add its name to one of them, or a row to the table in another
file of this folder, and a tiny model to ``tests/support/family_models.py``.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from gating.families.layouts import Q_K_V_PROJ, AttentionSpec, Row, check_row, context_spec, read_spec
from gating.families.media import DETECTION_FAMILIES, MEDIA_FAMILIES
from gating.families.text import SPECIAL_FAMILIES, TEXT_FAMILIES
from gating.loader.parts import original_class

__all__ = ["find_spec", "register_attention_spec", "registered_spec"]

# The rows of a query head may be followed by those of its output gate, as in Qwen3-Next.
_WITH_O_PROJ = """
    Apertus Apertus1p5Text Arcee AriaText AST Bamba BltSelf CanaryCross CanarySelf Cohere2 Cohere2Moe CohereAsrCross
    CohereAsrSelf CohereCompass ConditionalDetrSelf Cosmos3EdgeText Csm Cwm DeepseekOcr2Text DeepseekOcr2Vision
    DeformableDetrSelf Deimv2Self DeiT DetrSelf DFineSelf DiaCross DiaSelf Dinov2 Dinov2WithRegisters DINOv3ViT Dots1
    EdgeTam EdgeTamVideo EmbeddingGemma2 Emu3 Ernie4_5 Ernie4_5_Moe Ernie4_5_VLMoeText EuroBert Evolla Exaone4
    Exaone4_5_ ExaoneMoe FalconH1 Gemma Gemma2 Gemma3 Gemma4UnifiedText Glm Glm4 Glm4Moe Glm4vMoeText Glm4vText GlmAsr
    GlmImageText GlmOcrText GradiumPhononTTS Granite Granite4VisionText GraniteDoclingText GraniteMoe GraniteMoeHybrid
    GraniteMoeShared Gte Helium HiggsAudioV2 HunYuanDenseV1 HunYuanMoEV1 HunYuanVLDenseV1 HunYuanVLVision HyperCLOVAX
    HYV3 HYV4VLVision Idefics IJepa Jais2 Jamba JinaEmbeddingsV3 Kolibri1 LaraMini LasrEncoder LightGlue Llama
    Llama4Text Llama4Vision LwDetr LwDetrViT MaskFormerDetrSelf Mellum Mimi MiniMax MiniMaxM3VL Ministral Ministral3
    Mistral Mixtral MllamaTextSelf MllamaVision Molmo2 Molmo2Vision MoonshineStreamingEncoder NanoChat Nemotron
    NemotronH NeuCodec NomicBert Olmo PaddleOCR PeAudioEncoder PeAudioVideoEncoder PeVideoEncoder Phimoe Pixio Pixtral
    PocketTTS PocketTTSAudioTokenizer PPDocLayoutV2Self PPDocLayoutV3Self PPDocLayoutV4Self Qwen2 Qwen2_5_VL
    Qwen2_5Omni Qwen2Moe Qwen2VL Qwen3 Qwen3_5 Qwen3_5Moe Qwen3Moe Qwen3Next Qwen3OmniMoeCode2Wav
    Qwen3OmniMoeTalkerCodePredictor Qwen3OmniMoeThinkerText Qwen3VLMoeText Qwen3VLText Radio RecurrentGemma RfDetr
    RfDetrDinov2 RTDetrSelf RTDetrV2Self Sam2 Sam2Video Sam3Tracker Sam3TrackerVideo Sam3ViTRoPE SeedOss Segformer
    SmolLM3 SolarOpen Starcoder2 T5Gemma2Self T5GemmaCross T5GemmaSelf TimesFm2_5 Tipsv2Vision Ultrabert
    UnlimitedOcrText VaultGemma VideoPrism ViT ViTMAE ViTMSN Vivit VoxtralRealtime VoxtralRealtimeText Xcodec2
"""
_CROSS_WITH_O_PROJ = """
    ConditionalDetrCross DeformableDetrCross Deimv2Cross DetrCross DFineCross Idefics2Perceiver MaskFormerDetrCross
    MllamaTextCross PPDocLayoutV2Cross PPDocLayoutV3Cross PPDocLayoutV4Cross RTDetrCross RTDetrV2Cross
"""
_WITH_OUT_PROJ = """
    AudioFlamingo3 Bart BigBirdPegasusDecoder BioGpt Blenderbot BlenderbotSmall ChineseCLIPVision CLIP GPTJ GPTNeoSelf
    GraniteDoclingVision Informer Inkling2Vision Kosmos2_5Text KosmosText Lfm2 Lfm2Moe Lfm3VlVision M2M100 Marian MBart
    MetaClip2 MiniCPMOcrVision MiniCPMV4_6Vision MiniCPMV4_7Vision MiniMaxM3VLVision MLCD MossTranscribeDiarizeAudio
    Musicgen MusicgenMelody NllbMoe OmniASR OPT PaddleOCRVision PatchTSMixer Pegasus PegasusX Phi4MultimodalVision
    PLBart PPFormulaNet Qwen2Audio Sam3LiteTextText SeamlessM4Tv2 Speech2Text Step3p7Vision TimeSeriesTransformer
    Tipsv2Text UnlimitedOcr VideoLlama3Vision Videomt Voxtral Whisper
"""
# Some of them, such as ViTSelfAttention, in older versions alone.
_WITH_OUTPUT_BESIDE = """
    AlignTextSelf AltRobertaSelf ASTSelf BigBirdSelf Blip2QFormerMultiHead BlipTextSelf BridgeTowerSelf CanineSelf
    ChineseCLIPTextSelf ClapTextSelf DeiTSelf Dinov2Self Dinov2WithRegistersSelf DPTSelf FlavaSelf GitSelf
    GLPNEfficientSelf IJepaSelf InstructBlipQFormerMultiHead InstructBlipVideoQFormerMultiHead LukeSelf MobileBertSelf
    PixioSelf PvtEfficientSelf RfDetrDinov2Self RoFormerSelf SegformerEfficientSelf TapasSelf ViltSelf ViTMAESelf
    ViTMSNSelf VitPoseBackboneSelf ViTSelf VivitSelf YolosSelf YosoSelf
"""
_FUSED_VISION = """
    CohereCompassVision Dots3NoteVision Ernie4_5_VLMoeVision Glm4vMoeVision Glm4vVision Glm5NextVision GlmImageVision
    GlmOcrVision Qwen2_5_VLVision Qwen3_5MoeVision Qwen3_5Vision Qwen3OmniMoeVision Qwen3VLMoeVision Qwen3VLVision
    Qwen4ExpVision Vision
"""
# In BERT and the models made from it, classes of self-attention and of cross-attention have the same layout.
_BERT_LIKE = """
    Bert BertGeneration Camembert Data2VecText Electra Ernie Esm EvollaSaProt LayoutLM MarkupLM MegatronBert RemBert
    Roberta RobertaPreLayerNorm RoCBert Splinter VisualBert XLMRoberta XLMRobertaXL Xmod
"""


def _any_of(names: str, suffix: str = "Attention") -> str:
    """Return the pattern of the classes with these beginnings, separated by spaces, and one end."""
    return f"({'|'.join(names.split())}){suffix}"


_SHIPPED: dict[str, Row] = {
    _any_of(_WITH_O_PROJ): AttentionSpec(Q_K_V_PROJ, "o_proj"),
    _any_of(_CROSS_WITH_O_PROJ): AttentionSpec(Q_K_V_PROJ, "o_proj", is_cross_attention=True),
    _any_of(_WITH_OUT_PROJ): AttentionSpec(Q_K_V_PROJ, "out_proj"),
    _any_of("Mvp SeamlessM4T SpeechT5 Vits XGLM"): AttentionSpec(Q_K_V_PROJ, "out_proj", head_widths=("embed_dim",)),
    _any_of("Cosmos3EdgeVision Qwen2_5OmniAudio Qwen3ASRAudio Qwen3OmniMoeAudio"): AttentionSpec(
        Q_K_V_PROJ, "out_proj", returns="tensor"
    ),
    _any_of("Kimi_K25Vision MuseGlimmerVision MuseSparkVision"): AttentionSpec(Q_K_V_PROJ, "proj", returns="tensor"),
    _any_of(_FUSED_VISION): AttentionSpec((("qkv", "qkv"),), "proj", returns="tensor"),
    _any_of(_WITH_OUTPUT_BESIDE): context_spec(),
    _any_of(_BERT_LIKE, "SelfAttention"): context_spec(),
    _any_of(f"{_BERT_LIKE} BridgeTower", "CrossAttention"): context_spec(is_cross_attention=True),
    **TEXT_FAMILIES,
    **MEDIA_FAMILIES,
    **SPECIAL_FAMILIES,
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
    """
    own: Any = getattr(module, "attention_spec", None)
    if isinstance(own, dict):
        # A compact folder stores layouts as plain values.
        own = module.attention_spec = read_spec(own, AttentionSpec)
    if isinstance(own, AttentionSpec) and not shipped_only:
        return own
    return registered_spec(module, shipped_only=shipped_only)


def registered_spec(module: nn.Module, *, shipped_only: bool = False) -> AttentionSpec | None:
    """Return the spec in the row of a module's class, or None; the arguments are those of :func:`find_spec`."""
    row = _find_row(original_class(type(module)), shipped_only)
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
