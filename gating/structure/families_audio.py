"""Attention classes of models of sound: encoders of speech, and classifiers of sounds."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention_spec import Q_K_V_PROJ, AttentionSpec, Projections, Row
from .empty import with_zero_gradients

__all__ = ["AUDIO_FAMILIES"]


def _wavlm_forward(
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
    output = hidden_states.new_zeros(*hidden_states.shape[:-1], 0)
    probabilities = hidden_states.new_zeros(size, 0, length, length)
    if self.num_heads:
        parts = hidden_states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        bias = position_bias.unflatten(0, (size, -1))
        if hasattr(self, "head_slots"):
            slots = list(self.head_slots)
            parts, bias = parts[:, slots], bias[:, slots]
        gates = self.gru_rel_pos_linear(parts).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        gate_a, gate_b = gates.chunk(2, dim=-1)
        mask = (gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0) * bias
        if attention_mask is not None:
            mask = mask.masked_fill(attention_mask.ne(1)[:, None, None], float("-inf"))
        queries, keys, values = (
            project(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = torch.softmax(queries * self.scaling @ keys.transpose(-1, -2) + mask, dim=-1)
        weights = functional.dropout(weights, self.dropout, training=self.training)
        output = (weights @ values).transpose(1, 2).flatten(2)
        # The class returns means of all heads.
        probabilities = weights.mean(1, keepdim=True).expand_as(weights)
    return with_zero_gradients(self.out_proj(output), hidden_states, position_bias), probabilities, position_bias


def _rotary_forward(
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
    scores = queries @ keys.transpose(-1, -2) * self.scaling
    probabilities = torch.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
    head_outputs = (self.dropout(probabilities) @ values).transpose(1, 2).flatten(2)
    return self.linear_out(head_outputs), probabilities


_LINEAR: Projections = (("linear_q", "q"), ("linear_k", "k"), ("linear_v", "v"), ("linear_pos", "q"))


def _conformer(module: nn.Module) -> AttentionSpec:
    """Return the spec for a conformer's attention, by its type of positions."""
    is_rotary = getattr(module, "position_embeddings_type", None) == "rotary"
    return AttentionSpec(
        _LINEAR,
        "linear_out",
        head_dim="head_size",
        per_head=(("pos_bias_u", 0), ("pos_bias_v", 0)),
        forward=_rotary_forward if is_rotary else None,
    )


AUDIO_FAMILIES: dict[str, Row] = {
    "AST(Attention|SelfAttention)": AttentionSpec(Q_K_V_PROJ, "o_proj"),
    "(Wav2Vec2Bert|Wav2Vec2Conformer|SeamlessM4TConformer)SelfAttention": _conformer,
    "WavLMAttention": AttentionSpec(
        Q_K_V_PROJ,
        "out_proj",
        returns="forward",
        per_head=(("gru_rel_pos_const", 1),),
        forward=_wavlm_forward,
        calls_projection=False,
    ),
    "(ParakeetEncoder|NemotronAsrStreamingEncoder)Attention": AttentionSpec(
        (*Q_K_V_PROJ, ("relative_k_proj", "q")),
        "o_proj",
        per_head=(("bias_u", 0), ("bias_v", 0)),
        config_counts=("num_attention_heads",),
    ),
    "(Voxtral|Qwen2Audio)Attention": AttentionSpec(Q_K_V_PROJ, "out_proj"),
    "SpeechT5Attention": AttentionSpec(Q_K_V_PROJ, "out_proj", head_widths=("embed_dim",)),
}
