"""Forward passes of models of text and sound whose own code needs all heads, and the attention that they share."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .modeling import part


def split_heads(module: Any, *projected: Tensor) -> list[Tensor]:
    """Split features into heads, ``[batch, heads, length, head_dim]``."""
    return [features.unflatten(-1, (-1, module.head_dim)).transpose(1, 2) for features in projected]


def attend(
    module: Any, queries: Tensor, keys: Tensor, values: Tensor, *, scaling: float, dropout: float = 0.0, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend by the implementation that a model is set to; return values as :func:`attend_eagerly`."""
    function: Any = ALL_ATTENTION_FUNCTIONS.get(module.config._attn_implementation, attend_eagerly)
    result: tuple[Tensor, Tensor | None] = function(
        module, queries, keys, values, **{"attention_mask": None, **kwargs}, scaling=scaling, dropout=dropout
    )
    return result


def attend_eagerly(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of the heads, ``[batch, length, heads, head_dim]``, and the probabilities.

    The ``dropout`` is that in training.
    """
    scores = queries * scaling @ keys.transpose(-1, -2)
    probabilities = torch.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
    return (functional.dropout(probabilities, dropout, module.training) @ values).transpose(1, 2), probabilities


@part
def longformer_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    is_index_masked: Tensor | None = None,
    is_index_global_attn: Tensor | None = None,
    is_global_attn: bool | None = None,
    output_attentions: bool = False,
) -> tuple[Tensor, ...]:
    """Attend in windows and to some tokens of all as Longformer, whose own code joins heads to the hidden size."""
    assert attention_mask is not None
    assert is_index_masked is not None
    window = self.one_sided_attn_window_size
    queries, keys, values = (
        project(hidden_states).unflatten(-1, (-1, self.head_dim)) for project in (self.query, self.key, self.value)
    )
    queries = queries / self.head_dim**0.5
    is_masked = (attention_mask != 0)[:, :, None, None]
    added = is_masked.type_as(queries).masked_fill(is_masked, torch.finfo(queries.dtype).min)
    scores = self._sliding_chunks_query_key_matmul(queries, keys, window)
    scores = scores + self._sliding_chunks_query_key_matmul(torch.ones_like(added), added, window)
    found = self._get_global_attn_indices(is_index_global_attn) if is_global_attn else None
    names = (
        "max_num_global_attn_indices",
        "is_index_global_attn_nonzero",
        "is_local_index_global_attn_nonzero",
        "is_local_index_no_global_attn_nonzero",
    )
    places = dict(zip(names, found, strict=True)) if found is not None else {}
    if places:
        to_global = self._concat_with_global_key_attn_probs(query_vectors=queries, key_vectors=keys, **places)
        scores = torch.cat((to_global, scores), dim=-1)
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32)
    probabilities = probabilities.masked_fill(is_index_masked[:, :, None, None], 0.0).type_as(scores)
    weights = functional.dropout(probabilities, p=self.dropout, training=self.training)
    if not places:
        head_outputs = self._sliding_chunks_matmul_attn_probs_value(weights, values, window)
        return (head_outputs.flatten(2), weights) if output_attentions else (head_outputs.flatten(2),)
    head_outputs = self._compute_attn_output_with_global_indices(
        value_vectors=values, attn_probs=weights, **{name: places[name] for name in names[:3]}
    ).flatten(2)
    of_global, global_weights = self._compute_global_attn_output_from_hidden(
        hidden_states=hidden_states.transpose(0, 1), is_index_masked=is_index_masked, **places
    )
    row, position = places["is_local_index_global_attn_nonzero"]
    head_outputs[places["is_index_global_attn_nonzero"]] = of_global[row, :, position].flatten(1)
    weights[places["is_index_global_attn_nonzero"]] = 0
    return (head_outputs, weights, global_weights) if output_attentions else (head_outputs,)


@part
def trocr_forward(
    self: Any,
    hidden_states: Tensor,
    key_value_states: Tensor | None = None,
    cache: Any = None,
    attention_mask: Tensor | None = None,
    output_attentions: bool | None = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as TrOCR's decoder, whose own code gives the outputs of the heads the hidden size."""
    (queries,) = split_heads(self, self.q_proj(hidden_states))
    cache = kwargs.get("past_key_values", cache)  # its former name
    keys, values = _keys_and_values(self, key_value_states, cache, hidden_states)
    head_outputs, weights = attend_eagerly(
        self, queries, keys, values, attention_mask, scaling=self.scaling, dropout=self.dropout
    )
    return self.out_proj(head_outputs.flatten(2)), weights if output_attentions else None


@part
def led_forward(
    self: Any, hidden_states: Tensor, key_value_states: Tensor | None = None, cache: Any = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None, Any]:
    """Attend as LED's decoder, whose own code gives the outputs of the heads the hidden size."""
    cache = kwargs.pop("past_key_values", cache)  # its former name
    return *trocr_forward(self, hidden_states, key_value_states, cache, **kwargs), cache


@part
def fsmt_forward(
    self: Any,
    query: Tensor,
    key: Tensor | None,
    key_padding_mask: Tensor | None = None,
    layer_state: Any = None,
    attn_mask: Tensor | None = None,
    output_attentions: bool | None = False,
    **_kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Attend as FSMT, ``[length, batch, channels]``, whose own code gives the outputs of the heads the hidden size."""
    hidden_states = query.transpose(0, 1)
    source = key.transpose(0, 1) if key is not None and self.encoder_decoder_attention else None
    (queries,) = split_heads(self, self.q_proj(hidden_states))
    keys, values = _keys_and_values(self, source, layer_state, hidden_states)
    mask = attn_mask
    if key_padding_mask is not None and key_padding_mask.dim():
        is_padding = key_padding_mask[:, None, None]
        padding = torch.zeros_like(is_padding, dtype=query.dtype).masked_fill(is_padding, torch.finfo(query.dtype).min)
        mask = padding if mask is None else torch.minimum(mask, padding)
    features, weights = attend_eagerly(self, queries, keys, values, mask, scaling=self.scaling, dropout=self.dropout)
    output = self.out_proj(features.flatten(2).transpose(0, 1))
    return output, weights if output_attentions else None


def _keys_and_values(module: Any, source: Tensor | None, cache: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys and values of a layer, ``[batch, heads, length, head_dim]``, and put them into its cache."""
    own, has_both = cache, isinstance(cache, EncoderDecoderCache)
    if has_both:
        own = cache.self_attention_cache if source is None else cache.cross_attention_cache
        if source is not None and cache.is_updated.get(module.layer_idx):
            return own.layers[module.layer_idx].keys, own.layers[module.layer_idx].values
    inputs = hidden_states if source is None else source
    keys, values = split_heads(module, module.k_proj(inputs), module.v_proj(inputs))
    if own is not None:
        keys, values = own.update(keys, values, module.layer_idx)
        if source is not None and has_both:
            cache.is_updated[module.layer_idx] = True
    return keys, values


@part
def wavlm_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_kwargs: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend as WavLM, whose own code requires as many heads as fill its width.

    The first layer computes the position bias of all original heads, ``[batch * heads, length, length]``. Each head
    scales its part by gates that it computes from its own part of the input.
    """
    size, length, _ = hidden_states.shape
    if position_bias is None:
        position_bias = self.compute_bias(length, length).repeat(size, 1, 1)
    (parts,) = split_heads(self, hidden_states)
    bias = position_bias.unflatten(0, (size, -1))
    if hasattr(self, "head_slots"):
        slots = list(self.head_slots)
        parts, bias = parts[:, slots], bias[:, slots]
    gates = self.gru_rel_pos_linear(parts).unflatten(-1, (2, 4)).sum(-1).sigmoid()
    gate_a, gate_b = gates.chunk(2, dim=-1)
    mask = (gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0) * bias
    if attention_mask is not None:
        mask = mask.masked_fill(attention_mask.ne(1)[:, None, None], float("-inf"))
    projected = [project(hidden_states) for project in (self.q_proj, self.k_proj, self.v_proj)]
    queries, keys, values = split_heads(self, *projected)
    features, weights = attend_eagerly(self, queries, keys, values, mask, scaling=self.scaling, dropout=self.dropout)
    # The class returns means of all heads.
    probabilities = weights.mean(1, keepdim=True).expand_as(weights)
    return self.out_proj(features.flatten(2)), probabilities, position_bias


@part
def rotary_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    relative_position_embeddings: Tensor | None = None,
    **_kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Attend as a conformer with rotary positions, whose own code rotates the input in as many parts as heads."""
    assert relative_position_embeddings is not None
    cos, sin = relative_position_embeddings[:, : hidden_states.shape[1], 0].transpose(1, 2)
    parts = hidden_states.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
    begin, end = parts.chunk(2, dim=-1)
    rotated = (parts * cos + torch.cat((-end, begin), -1) * sin).transpose(1, 2).flatten(2)
    queries, keys, values = (
        features.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        for features in (self.linear_q(rotated), self.linear_k(rotated), self.linear_v(hidden_states))
    )
    # Older versions of transformers have no attribute for the scale.
    scores = queries @ keys.transpose(-1, -2) * self.head_size**-0.5
    probabilities = torch.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
    head_outputs = (self.dropout(probabilities) @ values).transpose(1, 2).flatten(2)
    return self.linear_out(head_outputs), probabilities
