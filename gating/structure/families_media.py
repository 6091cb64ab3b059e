"""Attention classes of models of images, videos and sound, and of the towers of models of several of them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attend import attend, attend_eagerly, keys_and_values, split_heads
from .attention_spec import Q_K_V, Q_K_V_PROJ, QUERY_KEY_VALUE, AttentionSpec, Projections, Returns, Row, context_spec
from .empty import with_zero_gradients

__all__ = ["MEDIA_FAMILIES", "blip_vision_forward"]


def blip_vision_forward(self: Any, hidden_states: Tensor, **_kwargs: object) -> tuple[Tensor, Tensor]:
    """Attend as BLIP's image encoder, whose own code computes the width of a head from the hidden size."""
    queries, keys, values = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
    probabilities = self.dropout(torch.softmax(queries @ keys.transpose(-1, -2) * self.scale, dim=-1))
    head_outputs = (probabilities @ values).transpose(1, 2).flatten(2)
    return self.projection(head_outputs), probabilities


def _blip_2_forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Attend as the image encoders of BLIP-2, whose own code computes the width of a head from the hidden size."""
    heads = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
    dropout = self.attention_dropout if self.training else 0.0
    head_outputs, probabilities = attend(self, *heads, scaling=self.scale, dropout=dropout, **kwargs)
    return self.projection(head_outputs.flatten(2)), probabilities


def _group_vit_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    **_kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Attend as GroupViT, whose own code gives the outputs of the heads the hidden size."""
    source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    queries, keys, values = split_heads(self, self.q_proj(hidden_states), self.k_proj(source), self.v_proj(source))
    dropout = self.dropout if self.training else 0.0
    head_outputs, probabilities = attend_eagerly(
        self, queries, keys, values, attention_mask, scaling=self.scale, dropout=dropout
    )
    return self.out_proj(head_outputs.flatten(2)), probabilities


def _trocr_forward(
    self: Any,
    hidden_states: Tensor,
    key_value_states: Tensor | None = None,
    cache: Any = None,
    attention_mask: Tensor | None = None,
    output_attentions: bool | None = False,
    **_kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Attend as TrOCR's decoder, whose own code gives the outputs of the heads the hidden size."""
    (queries,) = split_heads(self, self.q_proj(hidden_states))
    keys, values = keys_and_values(self, key_value_states, cache, hidden_states)
    dropout = self.dropout if self.training else 0.0
    head_outputs, weights = attend_eagerly(
        self, queries, keys, values, attention_mask, scaling=self.scaling, dropout=dropout
    )
    return self.out_proj(head_outputs.flatten(2)), weights if output_attentions else None


def _window_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Attend inside windows of ``[batch, height, width, channels]`` as Florence-2, whose own code needs all heads."""
    (_, height, width, _), size = hidden_states.shape, self.window_size
    padded = functional.pad(hidden_states, (0, 0, 0, -width % size, 0, -height % size))
    windows = padded.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)
    features = windows.flatten(3, 4).flatten(0, 2)
    if self.qkv is not None:
        heads = self.qkv(features).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        features = attend(self, *heads, scaling=self.scale)[0].flatten(2)
    windows = self.proj(features).unflatten(1, (size, size)).unflatten(0, windows.shape[:3])
    merged: Tensor = windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return merged[:, :height, :width].flatten(1, 2)


def _channel_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Attend among channels of a group as Florence-2, whose own code computes the width of a group from all channels.

    A group is to this module as a head is to others: groups meet in the output projection only.
    """
    features = hidden_states
    if self.qkv is not None:
        groups = self.qkv(hidden_states).unflatten(-1, (3, self.groups, -1)).permute(2, 0, 3, 4, 1)
        features = attend(self, *groups, scaling=hidden_states.shape[1] ** -0.5)[0].permute(0, 3, 2, 1).flatten(2)
    projected: Tensor = self.proj(features)
    return projected


def _multihead_forward(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    **_kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``nn.MultiheadAttention``, which requires as many heads as fill its width; ``is_causal`` is a hint."""
    is_batched = query.dim() == 3
    inputs = (
        (query, key, value) if self.batch_first or not is_batched else [x.transpose(0, 1) for x in (query, key, value)]
    )
    inputs = inputs if is_batched else [x.unsqueeze(0) for x in inputs]
    size, length = inputs[0].shape[:2]
    features, weights = inputs[0], query.new_zeros(size, 0, length, inputs[1].shape[1])
    if self.num_heads:
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        rows = zip(inputs, self.in_proj_weight.chunk(3), biases, strict=True)
        queries, keys, values = split_heads(self, *(functional.linear(x, weight, bias) for x, weight, bias in rows))
        mask = _sum_of_masks(self, attn_mask, key_padding_mask, size=size, dtype=query.dtype)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            features, weights = attend_eagerly(
                self, queries, keys, values, mask, scaling=self.head_dim**-0.5, dropout=dropout
            )
        else:
            attend = functional.scaled_dot_product_attention
            features = attend(queries, keys, values, attn_mask=mask, dropout_p=dropout).transpose(1, 2)
        features = features.flatten(2)
    output = with_zero_gradients(self.out_proj(features), key, value)
    if average_attn_weights:
        weights = weights.sum(1) / max(1, self.num_heads)
    if not is_batched:
        output, weights = output.squeeze(0), weights.squeeze(0)
    elif not self.batch_first:
        output = output.transpose(0, 1)
    return output, weights if need_weights else None


def _sum_of_masks(
    module: Any, mask: Tensor | None, padding: Tensor | None, *, size: int, dtype: torch.dtype
) -> Tensor | None:
    """Return the masks of ``nn.MultiheadAttention``, which may have a part for each original head, as one to add."""
    parts = []
    if mask is not None:
        mask = mask if mask.dim() == 2 else mask.unflatten(0, (size, -1))
        if mask.dim() == 4 and mask.shape[1] not in (1, module.num_heads):
            mask = mask[:, list(module.head_slots)]
        parts.append(mask)
    if padding is not None:
        parts.append(padding.reshape(size, 1, 1, -1))
    added = [
        torch.zeros_like(part, dtype=dtype).masked_fill(part, float("-inf")) if part.dtype == torch.bool else part
        for part in parts
    ]
    return sum(added[1:], added[0]) if added else None


def _timesformer_forward(self: Any, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
    """Attend as TimeSformer, whose own code gives the outputs of the heads the hidden size."""
    queries, keys, values = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    probabilities = self.attn_drop(torch.softmax(queries @ keys.transpose(-1, -2) * self.scale, dim=-1))
    head_outputs = (probabilities @ values).transpose(1, 2).flatten(2)
    return (head_outputs, probabilities) if output_attentions else (head_outputs,)


def _timesformer(module: Any) -> AttentionSpec:
    """Return the spec for TimeSformer, which has an attribute for the number of heads and one for their scale."""
    width = round(module.scale**-2)
    return AttentionSpec(
        (("qkv", "qkv"),), "^output.dense", head_dim=width, returns="context", forward=_timesformer_forward
    )


def _two_way(module: Any) -> AttentionSpec:
    """Return the spec for the mask decoder of SAM, where the width of all heads together has an attribute."""
    num_heads = getattr(module, "num_heads_before", module.num_attention_heads)
    return AttentionSpec(Q_K_V_PROJ, "out_proj", head_dim=int(module.internal_dim) // num_heads)


def _fused(module: Any, count: str, forward: Any = None, *, returns: Returns = "pair") -> AttentionSpec:
    """Return the spec for a class without an attribute for the width of a head, only for their number."""
    width = module.proj.weight.shape[0] // getattr(module, "num_heads_before", getattr(module, count))
    return AttentionSpec(
        (("qkv", "qkv"),),
        "proj",
        head_dim=int(width),
        returns="forward" if forward else returns,
        head_counts=(count,),
        forward=forward,
    )


def _multihead(module: nn.Module) -> AttentionSpec:
    """Return the spec for ``nn.MultiheadAttention``; with keys of its own, beside those of the input, none fits."""
    has_own_keys = getattr(module, "bias_k", None) is not None or getattr(module, "add_zero_attn", False)
    return AttentionSpec(
        () if has_own_keys else (("in_proj_weight", "qkv"),),
        "out_proj",
        returns="forward",
        forward=_multihead_forward,
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


_LINEAR_PARTS: Projections = (("q_proj.linear", "q"), ("k_proj.linear", "k"), ("v_proj.linear", "v"))
_IMAGES: dict[str, Row] = {
    "(ViT|ViTMAE|ViTMSN|DeiT|Dinov2|Dinov2WithRegisters|DINOv3ViT|IJepa|Pixtral|Llama4Vision|MllamaVision)Attention": (
        AttentionSpec(Q_K_V_PROJ, "o_proj")
    ),
    # The layer's and the encoder's table of position biases both come in through the mask.
    "BeitAttention": AttentionSpec(Q_K_V_PROJ, "o_proj", per_head_inputs=(("attention_mask", 1),)),
    "SwinAttention": AttentionSpec(
        Q_K_V_PROJ, "o_proj", per_head=(("relative_position_bias.relative_position_bias_table", 1),)
    ),
    # A table of biases in the layer, or one in the encoder for all layers.
    "Data2VecVision(Sdpa)?SelfAttention": context_spec(
        per_head=(("relative_position_bias.relative_position_bias_table", 1),),
        per_head_inputs=(("relative_position_bias", 1),),
    ),
    "(DonutSwin|ClapAudio)SelfAttention": context_spec(per_head=(("relative_position_bias_table", 1),)),
    "(CLIP|Siglip|Siglip2|Aimv2|CLIPSeg|AltCLIP|ChineseCLIPVision|OwlViT|Owlv2|XCLIP|Kosmos2Vision|Idefics2Vision|"
    "Idefics3Vision|SmolVLMVision|Ovis2Vision)Attention": AttentionSpec(Q_K_V_PROJ, "out_proj"),
    "BlipAttention": AttentionSpec(
        (("qkv", "qkv"),), "projection", head_widths=("embed_dim",), forward=blip_vision_forward
    ),
    "(Blip2|InstructBlip|InstructBlipVideo|PPOCRV5ServerRec|PPOCRV5MobileRec|PPOCRV6SmallRec)Attention": AttentionSpec(
        (("qkv", "qkv"),), "projection", forward=_blip_2_forward
    ),
    "(InternVL|QianfanOCR|Janus)VisionAttention": AttentionSpec(
        Q_K_V_PROJ, "projection_layer", head_widths=("embed_dim",)
    ),
    "GroupViTAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", forward=_group_vit_forward),
    "(Qwen2_5_VLVision|Qwen3VLVision|Qwen3VLMoeVision|Qwen3_5Vision|Qwen3_5MoeVision|Glm4vVision|Glm4vMoeVision|Vision)"
    "Attention": AttentionSpec((("qkv", "qkv"),), "proj", returns="tensor"),
    "Qwen2_5OmniVisionAttention": AttentionSpec(Q_K_V, "proj", returns="tensor"),
    "Gemma4VisionAttention": AttentionSpec(_LINEAR_PARTS, "o_proj.linear"),
    "Kosmos2_5VisionAttention": AttentionSpec(QUERY_KEY_VALUE, "output", head_widths=("inner_dim",)),
    "(Sam|SamHQ|GotOcr2|PPFormulaNet|SLANeXt|UnlimitedOcrSam|DeepseekOcr2Sam)VisionAttention": lambda module: _fused(
        module, "num_attention_heads"
    ),
    "VitDetAttention": lambda module: _fused(module, "num_heads", returns="mpnet"),
    "TimesformerSelfAttention": _timesformer,
    "(Sam|SamHQ)Attention": _two_way,
    "(Sam2|EdgeTam)(Video)?Attention|Sam3Tracker(Video)?Attention": AttentionSpec(Q_K_V_PROJ, "o_proj"),
    "Exaone4_5_VisionAttention": AttentionSpec(
        (("qkv", "qkv"),), "proj", returns="tensor", head_widths=("q_dim",), key_widths=("kv_dim",)
    ),
    "Pix2StructVisionAttention": AttentionSpec(
        QUERY_KEY_VALUE, "output", head_dim="key_value_proj_dim", head_widths=("inner_dim",)
    ),
    "Florence2VisionWindowAttention": lambda module: _fused(module, "num_heads", _window_forward),
    "Florence2VisionChannelAttention": lambda module: _fused(module, "groups", _channel_forward),
}
_SOUND: dict[str, Row] = {
    "(Wav2Vec2|Hubert|UniSpeech|UniSpeechSat|SEW|Data2VecAudio)Attention": AttentionSpec(Q_K_V_PROJ, "out_proj"),
    "Qwen2_5OmniAudioAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", returns="tensor"),
    "Gemma4AudioAttention": AttentionSpec((*_LINEAR_PARTS, ("relative_k_proj", "q")), "post.linear"),
}
# Attention between towers, and of tokens that stand for what a tower sees.
_BETWEEN: dict[str, Row] = {
    "MultiheadAttention": _multihead,
    "(Blip2|InstructBlip|InstructBlipVideo)QFormerMultiHeadAttention": context_spec(),
    "(Flava|Vilt|BridgeTower)SelfAttention": context_spec(),
    "BridgeTowerCrossAttention": context_spec(is_cross_attention=True),
    "Idefics2PerceiverAttention": AttentionSpec(Q_K_V_PROJ, "o_proj", is_cross_attention=True),
    "XCLIPCrossAttention": AttentionSpec(Q_K_V_PROJ, "proj", returns="tensor", is_cross_attention=True),
    "MllamaTextCrossAttention": AttentionSpec(Q_K_V_PROJ, "o_proj", is_cross_attention=True),
}
_LANGUAGE: dict[str, Row] = {
    "(BlipText|AlignText|AltRoberta|ChineseCLIPText|ClapText)SelfAttention": context_spec(),
    "(Qwen2VL|Qwen2_5_VL|Qwen3VLText|Qwen3VLMoeText|Qwen2_5Omni|Llama4Text|AriaText|Glm4vText|Glm4vMoeText)Attention": (
        AttentionSpec(Q_K_V_PROJ, "o_proj")
    ),
    "MllamaTextSelfAttention": AttentionSpec(Q_K_V_PROJ, "o_proj"),
    "(Kosmos|Kosmos2_5)TextAttention": AttentionSpec(Q_K_V_PROJ, "out_proj"),
    "(Gemma3n|Gemma4)TextAttention": _gemma,
    "ChameleonAttention": AttentionSpec(
        Q_K_V_PROJ,
        "o_proj",
        per_head=(("q_norm.weight", 0), ("q_norm.bias", 0)),
        per_key_value_head=(("k_norm.weight", 0), ("k_norm.bias", 0)),
    ),
    # One table of position biases, in the first layer, serves the whole stack, as in T5.
    "Pix2StructTextAttention": AttentionSpec(
        QUERY_KEY_VALUE, "output", head_dim="key_value_proj_dim", head_widths=("inner_dim",), returns="t5"
    ),
    "TrOCRAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", forward=_trocr_forward),
}
MEDIA_FAMILIES: dict[str, Row] = {**_IMAGES, **_SOUND, **_BETWEEN, **_LANGUAGE}
