"""Forward passes of models of images, and of ``nn.MultiheadAttention``, whose own code needs all heads."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .forwards import attend, attend_eagerly, split_heads
from .modeling import part


@part
def blip_vision_forward(self: Any, hidden_states: Tensor, **_kwargs: object) -> tuple[Tensor, Tensor]:
    """Attend as BLIP's image encoder, whose own code computes the width of a head from the hidden size."""
    head_outputs, probabilities = _attend_fused(self, hidden_states, self.dropout)
    return self.projection(head_outputs), probabilities


def _attend_fused(module: Any, hidden_states: Tensor, dropout: Any) -> tuple[Tensor, Tensor]:
    """Return the outputs of the heads, ``[batch, length, features]``, and the probabilities."""
    queries, keys, values = module.qkv(hidden_states).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    probabilities = dropout(torch.softmax(queries @ keys.transpose(-1, -2) * module.scale, dim=-1))
    return (probabilities @ values).transpose(1, 2).flatten(2), probabilities


@part
def blip_2_forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Attend as the image encoders of BLIP-2, whose own code computes the width of a head from the hidden size."""
    heads = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
    dropout = self.attention_dropout if self.training else 0.0
    head_outputs, probabilities = attend(self, *heads, scaling=self.scale, dropout=dropout, **kwargs)
    return self.projection(head_outputs.flatten(2)), probabilities


@part
def group_vit_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    causal_attention_mask: Tensor | None = None,
    **_kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Attend as GroupViT, whose own code gives the outputs of the heads the hidden size, as SigLIP's once did."""
    source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    if causal_attention_mask is not None:
        attention_mask = causal_attention_mask if attention_mask is None else attention_mask + causal_attention_mask
    queries, keys, values = split_heads(self, self.q_proj(hidden_states), self.k_proj(source), self.v_proj(source))
    dropout = self.dropout if self.training else 0.0
    head_outputs, probabilities = attend(
        self, queries, keys, values, attention_mask=attention_mask, scaling=self.scale, dropout=dropout
    )
    return self.out_proj(head_outputs.flatten(2)), probabilities


@part
def window_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Attend inside windows of ``[batch, height, width, channels]`` as Florence-2, whose own code needs all heads."""
    (_, height, width, _), size = hidden_states.shape, self.window_size
    padded = functional.pad(hidden_states, (0, 0, 0, -width % size, 0, -height % size))
    windows = padded.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)
    features = windows.flatten(3, 4).flatten(0, 2)
    heads = self.qkv(features).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    features = attend(self, *heads, scaling=self.scale)[0].flatten(2)
    windows = self.proj(features).unflatten(1, (size, size)).unflatten(0, windows.shape[:3])
    merged: Tensor = windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return merged[:, :height, :width].flatten(1, 2)


@part
def channel_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Attend among channels of a group as Florence-2, whose own code computes the width of a group from all channels.

    A group is to this module as a head is to others: groups meet in the output projection only.
    """
    groups = self.qkv(hidden_states).unflatten(-1, (3, self.groups, -1)).permute(2, 0, 3, 4, 1)
    features = attend(self, *groups, scaling=hidden_states.shape[1] ** -0.5)[0].permute(0, 3, 2, 1).flatten(2)
    projected: Tensor = self.proj(features)
    return projected


@part
def multihead_forward(
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
    biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
    rows = zip(inputs, self.in_proj_weight.chunk(3), biases, strict=True)
    queries, keys, values = split_heads(self, *(functional.linear(x, weight, bias) for x, weight, bias in rows))
    mask = _sum_of_masks(self, attn_mask, key_padding_mask, size=len(queries), dtype=query.dtype)
    weights: Any = None
    if need_weights:
        features, weights = attend_eagerly(
            self, queries, keys, values, mask, scaling=self.head_dim**-0.5, dropout=self.dropout
        )
    else:
        dropout = self.dropout if self.training else 0.0
        attend = functional.scaled_dot_product_attention
        features = attend(queries, keys, values, attn_mask=mask, dropout_p=dropout).transpose(1, 2)
    output = self.out_proj(features.flatten(2))
    if need_weights and average_attn_weights:
        weights = weights.mean(1)
    if not is_batched:
        output, weights = output.squeeze(0), weights.squeeze(0) if need_weights else None
    elif not self.batch_first:
        output = output.transpose(0, 1)
    return output, weights


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


@part
def timesformer_forward(self: Any, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
    """Attend as TimeSformer, whose own code gives the outputs of the heads the hidden size."""
    head_outputs, probabilities = _attend_fused(self, hidden_states, self.attn_drop)
    return (head_outputs, probabilities) if output_attentions else (head_outputs,)


@part
def detr_forward(
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
    dropout = self.dropout if dropout is None else dropout
    head_outputs, probabilities = attend_eagerly(
        self, queries, keys, values, attention_mask, scaling=self.scaling, dropout=dropout
    )
    return self.out_proj(head_outputs.flatten(2)), probabilities if output_attentions else None


@part
def mgp_forward(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Attend as MGP-STR, whose own code computes the width of a head from the hidden size."""
    head_outputs, probabilities = _attend_fused(self, hidden_states, self.attn_drop)
    return self.proj_drop(self.proj(head_outputs)), probabilities
