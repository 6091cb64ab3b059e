"""Attention classes of object detection and segmentation."""

from typing import Any

import torch
from torch import Tensor

from .attend import attend_eagerly, split_heads
from .attention_spec import Q_K_V_PROJ, QUERY_KEY_VALUE, AttentionSpec, Projections, Row, context_spec

__all__ = ["DETECTION_FAMILIES"]


def _detr_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    object_queries: Tensor | None = None,
    key_value_states: Tensor | None = None,
    spatial_position_embeddings: Tensor | None = None,
    output_attentions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend as the first DETR, whose own code gives the outputs of the heads the hidden size."""
    placed = hidden_states if object_queries is None else hidden_states + object_queries
    values_from = hidden_states if key_value_states is None else key_value_states
    keys_from = placed if key_value_states is None else key_value_states
    if spatial_position_embeddings is not None and key_value_states is not None:
        keys_from = key_value_states + spatial_position_embeddings
    queries, keys, values = split_heads(self, self.q_proj(placed), self.k_proj(keys_from), self.v_proj(values_from))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros_like(attention_mask, dtype=queries.dtype).masked_fill_(attention_mask, -torch.inf)
    dropout = getattr(self, "attention_dropout", None)
    rate = (self.dropout if dropout is None else dropout) if self.training else 0.0
    head_outputs, probabilities = attend_eagerly(
        self, queries, keys, values, attention_mask, scaling=self.scaling, dropout=rate
    )
    return self.out_proj(head_outputs.flatten(2)), probabilities if output_attentions else None


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
        returns="pair" if module.query_stride == 1 else "unknown",
        head_widths=("hidden_size_output",),
    )


def _mgp_forward(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Attend as MGP-STR, whose own code computes the width of a head from the hidden size."""
    queries, keys, values = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    probabilities = self.attn_drop(torch.softmax(queries @ keys.transpose(-1, -2) * self.scale, dim=-1))
    head_outputs = (probabilities @ values).transpose(1, 2).flatten(2)
    return self.proj_drop(self.proj(head_outputs)), probabilities


def _mgp(module: Any) -> AttentionSpec:
    """Return the spec for MGP-STR, which has an attribute for the number of heads only."""
    num_heads = getattr(module, "num_heads_before", module.num_heads)
    width = int(module.proj.weight.shape[0]) // num_heads
    return AttentionSpec((("qkv", "qkv"),), "proj", head_dim=width, forward=_mgp_forward)


_CONTENT: Projections = (
    ("q_content_proj", "q"),
    ("q_pos_proj", "q"),
    ("q_pos_sine_proj", "q"),
    ("k_content_proj", "k"),
    ("k_pos_proj", "k"),
    ("v_proj", "v"),
)
_DETR_LIKE = "(Detr|ConditionalDetr|DeformableDetr|MaskFormerDetr|RTDetr|RTDetrV2|DFine|Deimv2|PPDocLayoutV[234])"
DETECTION_FAMILIES: dict[str, Row] = {
    f"{_DETR_LIKE}SelfAttention": AttentionSpec(Q_K_V_PROJ, "o_proj"),
    f"{_DETR_LIKE}CrossAttention": AttentionSpec(Q_K_V_PROJ, "o_proj", is_cross_attention=True),
    "ConditionalDetrDecoderSelfAttention": AttentionSpec(_CONTENT, "o_proj"),
    "ConditionalDetrDecoderCrossAttention": AttentionSpec(_CONTENT, "o_proj", is_cross_attention=True),
    "(Detr|TableTransformer)Attention": AttentionSpec(Q_K_V_PROJ, "out_proj", forward=_detr_forward),
    "DabDetrAttention": _dab,
    "(DeformableDetr|RTDetr|RTDetrV2|GroundingDino|MMGroundingDino|OmDetTurbo|LwDetr|RfDetr|PPDocLayoutV[234]|"
    "(Mask2Former|OneFormer)PixelDecoderEncoder)MultiscaleDeformableAttention": _deformable,
    "(GroundingDino|MMGroundingDino|OmDetTurbo|ZoeDepth)MultiheadAttention": AttentionSpec(
        QUERY_KEY_VALUE,
        "out_proj",
        head_dim="attention_head_size",
        returns="mpnet",
        # Masks of texts have a copy for each head.
        per_head_inputs=(("attention_mask", 1),),
    ),
    "(Segformer|LwDetr|LwDetrViT)Attention": AttentionSpec(Q_K_V_PROJ, "o_proj"),
    "(EomtDinov3|Sam3|Sam3LiteText)Attention": AttentionSpec(
        Q_K_V_PROJ, "o_proj", per_head_inputs=(("attention_mask", 1),)
    ),
    # Fusion of images and texts: what one attends to in the other, and the reverse, from the same scores.
    "(GroundingDino|MMGroundingDino)BiMultiHeadAttention": AttentionSpec(
        (("vision_proj", "q"), ("text_proj", "k"), ("values_vision_proj", "v"), ("values_text_proj", "v")),
        "out_vision_proj",
        returns="two pairs",
        head_widths=("embed_dim",),
        is_cross_attention=True,
        other_outputs=("out_text_proj",),
    ),
    # Masks of the predicted objects have a copy for each head.
    "EomtAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", per_head_inputs=(("attention_mask", 1),)),
    "MaskFormerSwinSelfAttention": context_spec(per_head=(("relative_position_bias_table", 1),)),
    "(Swinv2|Swin2SR)SelfAttention": context_spec(
        (*QUERY_KEY_VALUE, ("continuous_position_bias_mlp.2", "q")), per_head=(("logit_scale", 0),)
    ),
    "HieraMaskUnitAttention": _hiera,
    "MgpstrAttention": _mgp,
}
