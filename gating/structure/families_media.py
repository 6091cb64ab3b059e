"""Attention classes of models of images, videos and sound, and of the towers of models of several of them."""

from typing import Any

import torch
from torch import Tensor

from .attention_spec import Q_K_V_PROJ, AttentionSpec, Row, context_spec

__all__ = ["MEDIA_FAMILIES", "blip_vision_forward"]


def blip_vision_forward(self: Any, hidden_states: Tensor, **_kwargs: object) -> tuple[Tensor, Tensor]:
    """Attend as BLIP's image encoder, whose own code computes the width of a head from the hidden size."""
    queries, keys, values = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
    probabilities = self.dropout(torch.softmax(queries @ keys.transpose(-1, -2) * self.scale, dim=-1))
    head_outputs = (probabilities @ values).transpose(1, 2).flatten(2)
    return self.projection(head_outputs), probabilities


MEDIA_FAMILIES: dict[str, Row] = {
    "(ViT|ViTMAE|ViTMSN|DeiT|Dinov2|Dinov2WithRegisters|DINOv3ViT|IJepa)Attention": AttentionSpec(Q_K_V_PROJ, "o_proj"),
    # The layer's and the encoder's table of position biases both come in through the mask.
    "BeitAttention": AttentionSpec(Q_K_V_PROJ, "o_proj", per_head_inputs=(("attention_mask", 1),)),
    "SwinAttention": AttentionSpec(
        Q_K_V_PROJ, "o_proj", per_head=(("relative_position_bias.relative_position_bias_table", 1),)
    ),
    "(CLIP|Siglip|Aimv2|Wav2Vec2|Hubert|UniSpeech|UniSpeechSat|SEW|Data2VecAudio)Attention": AttentionSpec(
        Q_K_V_PROJ, "out_proj"
    ),
    "BlipAttention": AttentionSpec(
        (("qkv", "qkv"),), "projection", head_widths=("embed_dim",), forward=blip_vision_forward
    ),
    "BlipTextSelfAttention": context_spec(),
}
