"""Attention classes of vision and audio encoders, and of models that join them with text."""

from typing import Any

import torch
from torch import Tensor

from .decoders import Q_K_V_PROJ
from .spec import AttentionSpec, SpecOrChoice
from .text_encoders import QUERY_KEY_VALUE

__all__ = ["VISION_AUDIO"]


def blip_vision_forward(self: Any, hidden_states: Tensor, **_kwargs: object) -> tuple[Tensor, Tensor]:
    """Attend as BLIP's image encoder does; its own code takes the width of a head for hidden size / heads."""
    queries, keys, values = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
    probabilities = self.dropout(torch.softmax(queries @ keys.transpose(-1, -2) * self.scale, dim=-1))
    heads = (probabilities @ values).transpose(1, 2).flatten(2)
    return self.projection(heads), probabilities


VISION_AUDIO: dict[str, SpecOrChoice] = {
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
    "BlipTextSelfAttention": AttentionSpec(
        QUERY_KEY_VALUE, "^output.dense", head_dim="attention_head_size", returns="context"
    ),
}
