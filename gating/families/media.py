"""Attention classes of models of images, videos and sound, and of the towers of models of several of them."""

from dataclasses import replace
from typing import Any, get_args

from torch import nn

from gating.families.layouts import (
    BY_COUNT,
    CONTEXT,
    Q_K_V,
    Q_K_V_PROJ,
    QUERY_KEY_VALUE,
    AttentionSpec,
    Projections,
    Row,
    has_variable,
)
from gating.loader.forwards import rotary_forward, trocr_forward, wavlm_forward
from gating.loader.forwards_images import (
    blip_2_forward,
    blip_vision_forward,
    channel_forward,
    detr_forward,
    group_vit_forward,
    mgp_forward,
    multihead_forward,
    timesformer_forward,
    window_forward,
)
from gating.loader.parts import original_class

_DAB_PARTS = ("query_content", "query_pos", "key_content", "key_pos", "value", "query_pos_sine")


def _multihead(module: nn.Module) -> AttentionSpec:
    """Return the spec for ``nn.MultiheadAttention``; with keys of its own, beside those of the input, none fits."""
    has_own_keys = getattr(module, "bias_k", None) is not None or getattr(module, "add_zero_attn", False)
    return AttentionSpec(
        () if has_own_keys else (("in_proj_weight", "qkv"),),
        "out_proj",
        returns="other",
        forward=multihead_forward,
        calls_projection=False,
    )


def _gemma(module: Any) -> AttentionSpec:
    """Return the spec for Gemma 3n and 4, where some layers use the keys and values of an earlier one."""
    is_borrowing = getattr(module, "is_kv_shared_layer", False)
    return AttentionSpec(
        Q_K_V_PROJ,
        "o_proj",
        borrowed="kv" if is_borrowing else "v" if getattr(module, "v_proj", None) is None else "",
        lends=bool(getattr(module, "store_full_length_kv", False)),
    )


def _conformer(module: nn.Module) -> AttentionSpec:
    """Return the spec for a conformer's attention, by its type of positions."""
    is_rotary = getattr(module, "position_embeddings_type", None) == "rotary"
    return AttentionSpec(
        _CONFORMER,
        "linear_out",
        head_dim="head_size",
        per_head=(("pos_bias_u", 0), ("pos_bias_v", 0)),
        forward=rotary_forward if is_rotary else None,
    )


def _tower(module: nn.Module) -> AttentionSpec:
    """Return the spec of towers; transformers 5.0 gives outputs the hidden size, and cannot load emptied ones."""
    if has_variable(module, "embed_dim"):
        return AttentionSpec(Q_K_V_PROJ, "out_proj", returns="other", forward=group_vit_forward)
    return AttentionSpec(Q_K_V_PROJ, "out_proj")


def _sound(module: Any) -> AttentionSpec:
    """Return the spec for sound and series; in older versions, their attention returns three values."""
    num_values = len(get_args(original_class(type(module)).forward.__annotations__["return"]))
    return AttentionSpec(Q_K_V_PROJ, "out_proj", returns="pair" if num_values == 2 else "other")


_CONFORMER: Projections = (("linear_q", "q"), ("linear_k", "k"), ("linear_v", "v"), ("linear_pos", "q"))
_LINEAR_PARTS: Projections = (("q_proj.linear", "q"), ("k_proj.linear", "k"), ("v_proj.linear", "v"))
_FUSED = AttentionSpec((("qkv", "qkv"),), "proj", head_dim=BY_COUNT)
MEDIA_FAMILIES: dict[str, Row] = {
    "(Aimv2|AltCLIP|CLIPSeg|GitVision|Idefics[23]?Vision|Kosmos2Vision|Ovis2Vision|Owlv2|OwlViT|Siglip2?|SmolVLMVision|"
    "VJEPA2PoolerSelf|XCLIP)Attention": _tower,
    "(Data2VecAudio|Hubert|PatchTST|SEW|UniSpeech|UniSpeechSat|Wav2Vec2)Attention": _sound,
    # In older versions, its biases are parameters of their own.
    "VideoMAESelfAttention": replace(CONTEXT, per_head=(("q_bias", 0), ("v_bias", 0))),
    # The layer's and the encoder's table of position biases both come in through the mask.
    "BeitAttention": AttentionSpec(Q_K_V_PROJ, "o_proj", per_head_inputs=(("attention_mask", 1),)),
    "SwinAttention": AttentionSpec(
        Q_K_V_PROJ, "o_proj", per_head=(("relative_position_bias.relative_position_bias_table", 1),)
    ),
    # A table of biases in the layer, or one in the encoder for all layers.
    "(Beit|Data2VecVision)(Sdpa)?SelfAttention": replace(
        CONTEXT,
        per_head=(("relative_position_bias.relative_position_bias_table", 1),),
        per_head_inputs=(("relative_position_bias", 1),),
    ),
    "BlipAttention": AttentionSpec(
        (("qkv", "qkv"),), "projection", head_widths=("embed_dim",), forward=blip_vision_forward
    ),
    "(Blip2|InstructBlip|InstructBlipVideo|PPOCRV5ServerRec|PPOCRV5MobileRec|PPOCRV6SmallRec)Attention": AttentionSpec(
        (("qkv", "qkv"),), "projection", forward=blip_2_forward
    ),
    "(InternVL|QianfanOCR|Janus)VisionAttention": AttentionSpec(
        Q_K_V_PROJ, "projection_layer", head_widths=("embed_dim",)
    ),
    "GroupViTAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", forward=group_vit_forward),
    "Qwen2_5OmniVisionAttention": AttentionSpec(Q_K_V, "proj", returns="tensor"),
    "Gemma4VisionAttention": AttentionSpec(_LINEAR_PARTS, "o_proj.linear"),
    "Kosmos2_5VisionAttention": AttentionSpec(QUERY_KEY_VALUE, "output", head_widths=("inner_dim",)),
    "(Sam|SamHQ|GotOcr2|PPFormulaNet|SLANeXt|UnlimitedOcrSam|DeepseekOcr2Sam)VisionAttention": _FUSED,
    "VitDetAttention": replace(_FUSED, returns="other"),
    "TimesformerSelfAttention": replace(
        _FUSED, output_projection="^output.dense", returns="context", forward=timesformer_forward
    ),
    "(Sam|SamHQ)Attention": AttentionSpec(Q_K_V_PROJ, "out_proj", head_dim=BY_COUNT),
    "Exaone4_5_VisionAttention": AttentionSpec(
        (("qkv", "qkv"),), "proj", returns="tensor", head_widths=("q_dim",), key_widths=("kv_dim",)
    ),
    "Florence2VisionWindowAttention": replace(_FUSED, returns="other", forward=window_forward),
    "Florence2VisionChannelAttention": replace(
        _FUSED, returns="other", head_counts=("groups",), forward=channel_forward
    ),
    "VJEPA2RopeAttention": AttentionSpec(QUERY_KEY_VALUE, "proj", head_dim="attention_head_size"),
    "MobileViTSelfAttention": replace(CONTEXT, returns="other"),
    "(Wav2Vec2Bert|Wav2Vec2Conformer|SeamlessM4TConformer)SelfAttention": _conformer,
    "WavLMAttention": AttentionSpec(
        Q_K_V_PROJ,
        "out_proj",
        returns="other",
        per_head=(("gru_rel_pos_const", 1),),
        forward=wavlm_forward,
        calls_projection=False,
    ),
    "(ParakeetEncoder|NemotronAsrStreamingEncoder)Attention": AttentionSpec(
        (*Q_K_V_PROJ, ("relative_k_proj", "q")),
        "o_proj",
        per_head=(("bias_u", 0), ("bias_v", 0)),
        config_counts=("num_attention_heads",),
    ),
    "Gemma4AudioAttention": AttentionSpec((*_LINEAR_PARTS, ("relative_k_proj", "q")), "post.linear"),
    "MultiheadAttention": _multihead,
    "XCLIPCrossAttention": AttentionSpec(Q_K_V_PROJ, "proj", returns="tensor"),
    "(Gemma3n|Gemma4)TextAttention": _gemma,
    "ChameleonAttention": AttentionSpec(
        Q_K_V_PROJ,
        "o_proj",
        per_head=(("q_norm.weight", 0), ("q_norm.bias", 0)),
        per_key_value_head=(("k_norm.weight", 0), ("k_norm.bias", 0)),
    ),
    "TrOCRAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", forward=trocr_forward),
}


def _dab(module: Any) -> AttentionSpec:
    """Return the spec for DAB-DETR, whose projections are those of the layer around the module."""
    parts: Projections = tuple(
        (f"^{kind}_attn_{part}_proj", "q" if part[0] == "q" else "k" if part[0] == "k" else "v")
        for kind in ("self", "cross")
        for part in _DAB_PARTS
    )
    return AttentionSpec(
        parts,
        "output_proj",
        head_dim="values_head_dim",
        head_counts=("attention_heads", "^decoder_attention_heads"),
        head_widths=("output_dim",),
        is_cross_attention=module.attention_head_dim != module.values_head_dim,
        key_dim="attention_head_dim",
    )


def _hiera(module: Any) -> AttentionSpec:
    """Return the spec for Hiera; attention that merges queries shortens the sequence, so that a block keeps a head."""
    return AttentionSpec(
        (("qkv", "qkv"),),
        "proj",
        returns="pair" if module.query_stride == 1 else "other",
        head_widths=("hidden_size_output",),
    )


_CONTENT: Projections = (
    ("q_content_proj", "q"),
    ("q_pos_proj", "q"),
    ("q_pos_sine_proj", "q"),
    ("k_content_proj", "k"),
    ("k_pos_proj", "k"),
    ("v_proj", "v"),
)
DETECTION_FAMILIES: dict[str, Row] = {
    "ConditionalDetrDecoder(Self|Cross)Attention": AttentionSpec(_CONTENT, "o_proj"),
    "(Detr|TableTransformer)Attention": AttentionSpec(Q_K_V_PROJ, "out_proj", forward=detr_forward),
    "DabDetrAttention": _dab,
    "(DeformableDetr|RTDetr|RTDetrV2|GroundingDino|MMGroundingDino|OmDetTurbo|LwDetr|RfDetr|PPDocLayoutV[234]|"
    "(Mask2Former|OneFormer)PixelDecoderEncoder)MultiscaleDeformableAttention": AttentionSpec(
        # A head reads its values at points of its own, with weights.
        (("sampling_offsets", "q"), ("attention_weights", "k"), ("value_proj", "v")),
        "output_proj",
        head_dim=BY_COUNT,
        head_widths=("d_model",),
    ),
    "(GroundingDino|MMGroundingDino|OmDetTurbo|ZoeDepth)MultiheadAttention": AttentionSpec(
        QUERY_KEY_VALUE,
        "out_proj",
        head_dim="attention_head_size",
        returns="other",
        # Masks of texts have a copy for each head.
        per_head_inputs=(("attention_mask", 1),),
    ),
    "(EomtDinov3|Sam3|Sam3LiteText)Attention": AttentionSpec(
        Q_K_V_PROJ, "o_proj", per_head_inputs=(("attention_mask", 1),)
    ),
    # Fusion of images and texts: what one attends to in the other, and the reverse, from the same scores.
    "(GroundingDino|MMGroundingDino)BiMultiHeadAttention": AttentionSpec(
        (("vision_proj", "q"), ("text_proj", "k"), ("values_vision_proj", "v"), ("values_text_proj", "v")),
        "out_vision_proj",
        returns="other",
        head_widths=("embed_dim",),
        is_cross_attention=True,
        other_outputs=("out_text_proj",),
    ),
    # Masks of the predicted objects have a copy for each head.
    "EomtAttention": lambda module: (
        None
        if has_variable(module, "embed_dim")
        else AttentionSpec(Q_K_V_PROJ, "out_proj", per_head_inputs=(("attention_mask", 1),))
    ),
    "(Swin|DonutSwin|ClapAudio|MaskFormerSwin)SelfAttention": replace(
        CONTEXT, per_head=(("relative_position_bias_table", 1),)
    ),
    "(Swinv2|Swin2SR)SelfAttention": replace(
        CONTEXT,
        projections=(*QUERY_KEY_VALUE, ("continuous_position_bias_mlp.2", "q")),
        per_head=(("logit_scale", 0),),
    ),
    "HieraMaskUnitAttention": _hiera,
    "MgpstrAttention": replace(_FUSED, forward=mgp_forward),
}
