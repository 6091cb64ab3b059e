"""The registry of attention classes and feed-forward layouts whose units can be gated and removed.

Attention has one row for each layout. Those that transformers copies from model to model are here, by the beginnings of
the names of classes; the census proves those whose models it can build. To add a family, add its name to one of them,
or a row to the table in another file of this folder, and a tiny model to ``tests/support/family_models.py``.
Feed-forward layouts are rows of common names of projections.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from gating.families.layouts import (
    CONTEXT,
    Q_K_V_PROJ,
    AttentionSpec,
    FeedForwardSpec,
    Row,
    UpLayout,
    num_inputs,
    num_outputs,
    read_spec,
    without_adapter,
)
from gating.families.media import DETECTION_FAMILIES, MEDIA_FAMILIES
from gating.families.text import SPECIAL_FAMILIES, TEXT_FAMILIES
from gating.loader.parts import original_class
from gating.units import UnitName

# The rows of a query head may be followed by those of its output gate, as in Qwen3-Next.
_WITH_O_PROJ = """
    Apertus Apertus1p5Text Arcee AriaText AST Bamba BltSelf CanaryCross CanarySelf Cohere2 Cohere2Moe CohereAsrCross
    CohereAsrSelf CohereCompass ConditionalDetrCross ConditionalDetrSelf Cosmos3EdgeText Csm Cwm DeepseekOcr2Text
    DeepseekOcr2Vision DeformableDetrCross DeformableDetrSelf Deimv2Cross Deimv2Self DeiT DetrCross DetrSelf DFineCross
    DFineSelf DiaCross DiaSelf Dinov2 Dinov2WithRegisters DINOv3ViT Dots1 EdgeTam EdgeTamVideo EmbeddingGemma2 Emu3
    Ernie4_5 Ernie4_5_Moe Ernie4_5_VLMoeText EuroBert Evolla Exaone4 Exaone4_5_ ExaoneMoe FalconH1 Gemma Gemma2 Gemma3
    Gemma4UnifiedText Glm Glm4 Glm4Moe Glm4vMoeText Glm4vText GlmAsr GlmImageText GlmOcrText GradiumPhononTTS Granite
    Granite4VisionText GraniteDoclingText GraniteMoe GraniteMoeHybrid GraniteMoeShared Gte Helium HiggsAudioV2
    HunYuanDenseV1 HunYuanMoEV1 HunYuanVLDenseV1 HunYuanVLVision HyperCLOVAX HYV3 HYV4VLVision Idefics IJepa Jais2 Jamba
    JinaEmbeddingsV3 Kolibri1 LaraMini LasrEncoder LightGlue Llama Llama4Text Llama4Vision LwDetr LwDetrViT
    MaskFormerDetrCross MaskFormerDetrSelf Mellum Mimi MiniMax MiniMaxM3VL Ministral Ministral3 Mistral Mixtral
    MllamaTextCross MllamaTextSelf MllamaVision Molmo2 Molmo2Vision MoonshineStreamingEncoder NanoChat Nemotron
    NemotronH NeuCodec NomicBert Olmo PaddleOCR PeAudioEncoder PeAudioVideoEncoder PeVideoEncoder Phimoe Pixio Pixtral
    PocketTTS PocketTTSAudioTokenizer PPDocLayoutV2Cross PPDocLayoutV2Self PPDocLayoutV3Cross PPDocLayoutV3Self
    PPDocLayoutV4Cross PPDocLayoutV4Self Qwen2 Qwen2_5_VL Qwen2_5Omni Qwen2Moe Qwen2VL Qwen3 Qwen3_5 Qwen3_5Moe Qwen3Moe
    Qwen3Next Qwen3OmniMoeCode2Wav Qwen3OmniMoeTalkerCodePredictor Qwen3OmniMoeThinkerText Qwen3VLMoeText Qwen3VLText
    Radio RecurrentGemma RfDetr RfDetrDinov2 RTDetrCross RTDetrSelf RTDetrV2Cross RTDetrV2Self Sam2 Sam2Video
    Sam3Tracker Sam3TrackerVideo Sam3ViTRoPE SeedOss Segformer SmolLM3 SolarOpen Starcoder2 T5Gemma2Self T5GemmaCross
    T5GemmaSelf TimesFm2_5 Tipsv2Vision Ultrabert UnlimitedOcrText VaultGemma VideoPrism ViT ViTMAE ViTMSN Vivit
    VoxtralRealtime VoxtralRealtimeText Xcodec2
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
    "Idefics2PerceiverAttention": AttentionSpec(Q_K_V_PROJ, "o_proj", is_cross_attention=True),
    _any_of(_WITH_OUT_PROJ): AttentionSpec(Q_K_V_PROJ, "out_proj"),
    _any_of("Mvp SeamlessM4T SpeechT5 Vits XGLM"): AttentionSpec(Q_K_V_PROJ, "out_proj", head_widths=("embed_dim",)),
    _any_of("Cosmos3EdgeVision Qwen2_5OmniAudio Qwen3ASRAudio Qwen3OmniMoeAudio"): AttentionSpec(
        Q_K_V_PROJ, "out_proj", returns="tensor"
    ),
    _any_of("Kimi_K25Vision MuseGlimmerVision MuseSparkVision"): AttentionSpec(Q_K_V_PROJ, "proj", returns="tensor"),
    _any_of(_FUSED_VISION): AttentionSpec((("qkv", "qkv"),), "proj", returns="tensor"),
    _any_of(_WITH_OUTPUT_BESIDE): CONTEXT,
    _any_of(f"{_BERT_LIKE} BridgeTower", "(Self|Cross)Attention"): CONTEXT,
    **TEXT_FAMILIES,
    **MEDIA_FAMILIES,
    **SPECIAL_FAMILIES,
    **DETECTION_FAMILIES,
}
# Names of the projections, relative to the smallest module that holds all. Of two rows that fit, the first one counts.
_FEED_FORWARD = (
    FeedForwardSpec((("intermediate.dense", "plain"),), "output.dense"),
    FeedForwardSpec((("gate_proj", "plain"), ("up_proj", "plain")), "down_proj"),
    FeedForwardSpec((("up_proj", "plain"),), "down_proj"),
    FeedForwardSpec((("gate_up_proj", "halves"),), "down_proj"),
    FeedForwardSpec((("fc1", "plain"),), "fc2"),
    FeedForwardSpec((("fc1", "halves"),), "fc2"),
    FeedForwardSpec((("c_fc", "plain"),), "c_proj"),
    FeedForwardSpec((("dense_h_to_4h", "plain"),), "dense_4h_to_h"),
    FeedForwardSpec((("wi_0", "plain"), ("wi_1", "plain")), "wo"),
    FeedForwardSpec((("wi", "plain"),), "wo"),
    FeedForwardSpec((("Wi", "halves"),), "Wo"),
    FeedForwardSpec((("lin1", "plain"),), "lin2"),
    FeedForwardSpec((("ffn", "plain"),), "ffn_output"),
    FeedForwardSpec((("intermediate_dense", "plain"),), "output_dense"),
    FeedForwardSpec((("fc_in", "plain"),), "fc_out"),
    FeedForwardSpec((("linear_fc1", "plain"),), "linear_fc2"),
    FeedForwardSpec((("linear1", "plain"),), "linear2"),
    FeedForwardSpec((("w1", "plain"), ("w3", "plain")), "w2"),
    FeedForwardSpec((("input_linear", "halves"),), "output_linear"),
    FeedForwardSpec((("ffw_layer_1", "plain"),), "ffw_layer_2"),
    FeedForwardSpec((("w_in.w_0", "plain"), ("w_in.w_1", "plain")), "w_out"),
)
# Rows of the user by unit.
_REGISTERED: dict[UnitName, dict[str, Any]] = {"heads": {}, "neurons": {}}


def register_attention_spec(class_name: str, spec: AttentionSpec | Callable[[nn.Module], AttentionSpec | None]) -> None:
    """Register the layout of an attention class; a later row for the same pattern replaces the earlier one.

    Args:
        class_name: Name of the attention class, or a regular expression that matches it in full.
        spec: The layout of its heads, or a function that returns the layout for a module of the class, or None.

    Raises:
        re.error: The name is no regular expression.

    Example:
        >>> register_attention_spec("MyAttention", AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out"))
    """
    _register("heads", class_name, spec)


def register_feed_forward_spec(class_name: str, spec: FeedForwardSpec) -> None:
    """Register the layout of a feed-forward class; a later row for the same pattern replaces the earlier one.

    Args:
        class_name: Name of the class that holds all projections, or a regular expression that matches it in full.
        spec: The layout of its projections.

    Raises:
        re.error: The name is no regular expression.

    Example:
        >>> register_feed_forward_spec("MyMLP", FeedForwardSpec((("expand", "plain"),), "contract"))
    """
    _register("neurons", class_name, spec)


def _register(unit: UnitName, class_name: str, spec: Any) -> None:
    re.compile(class_name)
    _REGISTERED[unit].pop(class_name, None)
    _REGISTERED[unit][class_name] = spec
    _find_row.cache_clear()


@lru_cache(maxsize=4096)
def _find_row(module_class: type, unit: UnitName, shipped_only: bool) -> Any:
    """Return the row of a class, or of its nearest ancestor with one, or None."""
    # Newest first: rows of the user precede those of the package.
    rows = [] if shipped_only else [*reversed(_REGISTERED[unit].items())]
    rows += _SHIPPED.items() if unit == "heads" else []
    for ancestor in module_class.__mro__:
        for pattern, spec in rows:
            if re.fullmatch(pattern, ancestor.__name__):
                return spec
    return None


def find_spec(module: nn.Module) -> AttentionSpec | None:
    """Return the spec of an attention module, or None, by its class or the nearest ancestor with a row.

    An attribute ``attention_spec`` of the module, where discovery stores its findings, takes precedence.
    """
    own = _own_spec(module, "attention_spec", AttentionSpec)
    return registered_spec(module) if own is None else own


def registered_spec(module: nn.Module, *, shipped_only: bool = False) -> AttentionSpec | None:
    """Return the spec in the row of a module's class, or None; ``shipped_only`` leaves out those of the user."""
    row: Row | None = _find_row(original_class(type(module)), "heads", shipped_only)
    return row if row is None or isinstance(row, AttentionSpec) else row(module)


def find_feed_forward_spec(module: nn.Module) -> FeedForwardSpec | None:
    """Return the spec of a module that holds the projections of a feed-forward block, or None.

    An attribute ``feed_forward_spec`` of the module, where discovery stores its findings, takes precedence over rows
    that the user registered for its class, and those over common names of projections with fitting widths.
    """
    own = _own_spec(module, "feed_forward_spec", FeedForwardSpec)
    return registered_feed_forward_spec(module) if own is None else own


def registered_feed_forward_spec(module: nn.Module, *, shipped_only: bool = False) -> FeedForwardSpec | None:
    """Return the spec in a row that fits a module, or None; ``shipped_only`` leaves out those of the user."""
    registered = _find_row(original_class(type(module)), "neurons", shipped_only)
    rows = _FEED_FORWARD if registered is None else (registered,)
    return next((spec for spec in rows if fits(module, spec)), None)


def _own_spec(module: Any, attribute: str, spec_class: type) -> Any:
    """Return the spec in an attribute of a module, or None; a compact folder stores it as plain values."""
    own = getattr(module, attribute, None)
    if isinstance(own, dict):
        own = read_spec(own, spec_class)
        setattr(module, attribute, own)
    return own if isinstance(own, spec_class) else None


def rows_of_layout(layout: UpLayout, positions: Sequence[int], width: int) -> list[int]:
    """Return the output rows of an up projection for the neurons at some of ``width`` positions."""
    if layout == "halves":
        return [*positions, *(width + position for position in positions)]
    if layout == "pairs":
        return [row for position in positions for row in (2 * position, 2 * position + 1)]
    return list(positions)


def fits(module: nn.Module, spec: FeedForwardSpec) -> bool:
    """Return whether the layers of a spec exist and have the widths of a feed-forward block."""
    down = linear_at(module, spec.down)
    if down is None:
        return False
    width, hidden = num_inputs(down), num_outputs(down)
    for path, layout in spec.ups:
        up, num_rows = linear_at(module, path), width if layout == "plain" else 2 * width
        if up is None or (num_outputs(up), num_inputs(up)) != (num_rows, hidden):
            return False
    return True


def linear_at(module: nn.Module, path: str) -> nn.Module | None:
    """Return the layer at a path of a module that has a matrix of weights, quantized or not, or None."""
    first, *others = path.split(".")
    # Wrappers such as that of torch.compile pass attributes of their module on, and are no owner themselves.
    found: Any = module._modules.get(first)
    for name in others:
        found = getattr(found, name, None)
    if not isinstance(found, nn.Module):
        return None
    # Quantized layers, too: the error about them comes later.
    layer = without_adapter(found)
    weight = getattr(layer, "weight", None)
    is_matrix = weight.dim() == 2 if isinstance(weight, Tensor) else hasattr(layer, "in_features")
    return found if is_matrix else None
