"""Attention classes of text models with layouts of their own: long texts, early decoders, documents."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .attend import attend_eagerly, keys_and_values, split_heads
from .attention_spec import Q_K_V_PROJ, QUERY_KEY_VALUE, AttentionSpec, Projections, Row, context_spec
from .empty import update_cache, with_zero_gradients

__all__ = ["SPECIAL_FAMILIES"]


def _longformer_forward(
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


def _led_forward(
    self: Any,
    hidden_states: Tensor,
    key_value_states: Tensor | None = None,
    cache: Any = None,
    attention_mask: Tensor | None = None,
    output_attentions: bool = False,
    **_kwargs: object,
) -> tuple[Tensor, Tensor | None, Any]:
    """Attend as LED's decoder, whose own code gives the outputs of the heads the hidden size."""
    (queries,) = split_heads(self, self.q_proj(hidden_states))
    keys, values = keys_and_values(self, key_value_states, cache, hidden_states)
    dropout = self.dropout if self.training else 0.0
    head_outputs, weights = attend_eagerly(
        self, queries, keys, values, attention_mask, scaling=self.scaling, dropout=dropout
    )
    output = self.out_proj(head_outputs.flatten(2))
    return output, weights if output_attentions else None, cache


def _fsmt_forward(
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
    if not self.num_heads:
        key_length = update_cache(self, hidden_states, source, layer_state)
        features, weights = hidden_states, query.new_zeros(*hidden_states.shape[:2], 0, key_length).transpose(1, 2)
    else:
        (queries,) = split_heads(self, self.q_proj(hidden_states))
        keys, values = keys_and_values(self, source, layer_state, hidden_states)
        mask = attn_mask
        if key_padding_mask is not None and key_padding_mask.dim():
            is_padding = key_padding_mask[:, None, None]
            padding = torch.zeros_like(is_padding, dtype=query.dtype).masked_fill(
                is_padding, torch.finfo(query.dtype).min
            )
            mask = padding if mask is None else torch.minimum(mask, padding)
        dropout = self.dropout if self.training else 0.0
        features, weights = attend_eagerly(self, queries, keys, values, mask, scaling=self.scaling, dropout=dropout)
        features = features.flatten(2)
    output = with_zero_gradients(self.out_proj(features.transpose(0, 1)), key)
    return output, weights if output_attentions else None


def _bloom(module: Any) -> AttentionSpec | None:
    """Return the spec for BLOOM; None where its code slices the weight of the output projection."""
    if module.pretraining_tp > 1 and module.slow_but_exact:
        return None
    return AttentionSpec((("query_key_value", "hqkv"),), "dense", returns="residual", per_head_inputs=(("alibi", 0),))


def _moshi(module: Any) -> AttentionSpec | None:
    """Return the spec for Moshi; None for its decoder of codebooks, whose layers have a weight for each of them."""
    if getattr(module.o_proj, "use_flexible_linear", False):
        return None
    return AttentionSpec((("q_proj.linear", "q"), ("k_proj.linear", "k"), ("v_proj.linear", "v")), "o_proj.linear")


def _funnel(module: Any) -> AttentionSpec:
    """Return the spec for Funnel, where only the configuration has the width of a head."""
    return AttentionSpec(
        (("q_head", "q"), ("k_head", "k"), ("v_head", "v")),
        "post_proj",
        head_dim=int(module.config.d_head),
        returns="funnel",
        per_head=(("r_w_bias", 0), ("r_r_bias", 0), ("r_kernel", 1), ("r_s_bias", 0), ("seg_embed", 1)),
        config_counts=("n_head",),
    )


def _short_name(module: Any) -> AttentionSpec | None:
    """Return the spec for a class of transformers with a name that many packages use."""
    model = type(module).__module__.removeprefix("transformers.models.").partition(".")[0]
    if model == "openai":
        width = module.c_proj.weight.shape[1] // getattr(module, "num_heads_before", module.n_head)
        return AttentionSpec(
            (("c_attn", "qkv"),),
            "c_proj",
            head_dim=int(width),
            returns="list",
            head_counts=("n_head",),
            head_widths=("split_size",),
        )
    if model == "ctrl":
        return AttentionSpec((("Wq", "q"), ("Wk", "k"), ("Wv", "v")), "dense")
    if model == "fsmt":
        return AttentionSpec(Q_K_V_PROJ, "out_proj", returns="forward", forward=_fsmt_forward)
    if model in ("xlm", "flaubert"):
        return AttentionSpec((("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v")), "out_lin", returns="mpnet")
    return None


_GLOBAL: Projections = (("query_global", "q"), ("key_global", "k"), ("value_global", "v"))
_WINDOWED: Projections = (*QUERY_KEY_VALUE, *_GLOBAL)
_LONG_TEXTS: dict[str, Row] = {
    "LongformerSelfAttention": AttentionSpec(
        _WINDOWED, "^output.dense", returns="longformer", forward=_longformer_forward
    ),
    "LEDEncoderSelfAttention": AttentionSpec(_WINDOWED, "^output", returns="longformer", forward=_longformer_forward),
    "LEDDecoderAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", returns="cache", forward=_led_forward),
    "LongT5Attention": AttentionSpec(
        (("q", "q"), ("k", "k"), ("v", "v")),
        "o",
        head_dim="key_value_proj_dim",
        head_widths=("inner_dim",),
        returns="t5",
    ),
    "BigBirdSelfAttention": context_spec(),
    "BigBirdPegasusSelfAttention": AttentionSpec(
        QUERY_KEY_VALUE, "^output", head_dim="attention_head_size", returns="context"
    ),
}
_DECODERS: dict[str, Row] = {
    "BloomAttention": _bloom,
    "MptAttention": AttentionSpec((("Wqkv", "qkv"),), "out_proj", per_head_inputs=(("position_bias", 0),)),
    "CodeGenAttention": AttentionSpec((("qkv_proj", "pqvk"),), "out_proj", head_widths=("embed_dim",)),
    "GPTNeoSelfAttention": AttentionSpec(Q_K_V_PROJ, "out_proj"),
    "StableLmAttention": AttentionSpec(
        Q_K_V_PROJ,
        "o_proj",
        per_head=(("q_layernorm.norms", 0),),
        per_key_value_head=(("k_layernorm.norms", 0),),
    ),
    "(Moshi|KyutaiSpeechToText)Attention": _moshi,
    "CpmAntAttention": AttentionSpec(
        (("project_q", "q"), ("project_k", "k"), ("project_v", "v")),
        "attention_out",
        head_dim="dim_head",
        per_head_inputs=(("position_bias", 1),),
    ),
    "(Attention|MultiHeadAttention)": _short_name,
}
_ENCODERS: dict[str, Row] = {
    # The positions of the model's table serve all layers.
    "(LayoutLMv3|PPDocLayoutV2ReadingOrder)SelfAttention": AttentionSpec(
        QUERY_KEY_VALUE,
        "^output.dense",
        head_dim="attention_head_size",
        returns="context",
        per_head_inputs=(("position_bias", 1),),
    ),
    "LayoutLMv2SelfAttention": AttentionSpec(
        (*QUERY_KEY_VALUE, ("qkv_linear", "qkv")),
        "^output.dense",
        head_dim="attention_head_size",
        returns="context",
        per_head=(("q_bias", 2), ("v_bias", 2)),
        per_head_inputs=(("rel_pos", 1), ("rel_2d_pos", 1)),
    ),
    # Texts and their layout attend by the sum of their scores; heads of the layout are narrower.
    "LiltSelfAttention": AttentionSpec(
        (*QUERY_KEY_VALUE, ("layout_query", "q"), ("layout_key", "k"), ("layout_value", "v")),
        "^output.dense",
        head_dim="attention_head_size",
        returns="contexts",
        other_outputs=("^layout_output.dense",),
    ),
    "FunnelRelMultiheadAttention": _funnel,
}
SPECIAL_FAMILIES: dict[str, Row] = {**_LONG_TEXTS, **_DECODERS, **_ENCODERS}
