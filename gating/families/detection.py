"""Attention classes of object detection and segmentation."""

from typing import Any

from gating.families.layouts import Q_K_V_PROJ, QUERY_KEY_VALUE, AttentionSpec, Projections, Row, context_spec
from gating.loader.forwards_images import detr_forward, mgp_forward

__all__ = ["DETECTION_FAMILIES"]


_DAB_PARTS = ("query_content", "query_pos", "key_content", "key_pos", "value", "query_pos_sine")


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


def _deformable(module: Any) -> AttentionSpec:
    """Return the spec for deformable attention, where a head reads its values at points of its own, with weights."""
    num_heads = getattr(module, "num_heads_before", module.n_heads)
    return AttentionSpec(
        (("sampling_offsets", "q"), ("attention_weights", "k"), ("value_proj", "v")),
        "output_proj",
        head_dim=int(module.output_proj.weight.shape[0]) // num_heads,
        head_widths=("d_model",),
    )


def _hiera(module: Any) -> AttentionSpec:
    """Return the spec for Hiera; attention that merges queries shortens the sequence, so that a block keeps a head."""
    return AttentionSpec(
        (("qkv", "qkv"),),
        "proj",
        returns="pair" if module.query_stride == 1 else "other",
        head_widths=("hidden_size_output",),
    )


def _mgp(module: Any) -> AttentionSpec:
    """Return the spec for MGP-STR, which has an attribute for the number of heads only."""
    num_heads = getattr(module, "num_heads_before", module.num_heads)
    width = int(module.proj.weight.shape[0]) // num_heads
    return AttentionSpec((("qkv", "qkv"),), "proj", head_dim=width, forward=mgp_forward)


_CONTENT: Projections = (
    ("q_content_proj", "q"),
    ("q_pos_proj", "q"),
    ("q_pos_sine_proj", "q"),
    ("k_content_proj", "k"),
    ("k_pos_proj", "k"),
    ("v_proj", "v"),
)
DETECTION_FAMILIES: dict[str, Row] = {
    "ConditionalDetrDecoderSelfAttention": AttentionSpec(_CONTENT, "o_proj"),
    "ConditionalDetrDecoderCrossAttention": AttentionSpec(_CONTENT, "o_proj", is_cross_attention=True),
    "(Detr|TableTransformer)Attention": AttentionSpec(Q_K_V_PROJ, "out_proj", forward=detr_forward),
    "DabDetrAttention": _dab,
    "(DeformableDetr|RTDetr|RTDetrV2|GroundingDino|MMGroundingDino|OmDetTurbo|LwDetr|RfDetr|PPDocLayoutV[234]|"
    "(Mask2Former|OneFormer)PixelDecoderEncoder)MultiscaleDeformableAttention": _deformable,
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
    "EomtAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", per_head_inputs=(("attention_mask", 1),)),
    "(DonutSwin|ClapAudio|MaskFormerSwin)SelfAttention": context_spec(per_head=(("relative_position_bias_table", 1),)),
    "(Swinv2|Swin2SR)SelfAttention": context_spec(
        (*QUERY_KEY_VALUE, ("continuous_position_bias_mlp.2", "q")), per_head=(("logit_scale", 0),)
    ),
    "HieraMaskUnitAttention": _hiera,
    "MgpstrAttention": _mgp,
}
