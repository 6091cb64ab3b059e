"""Forward passes of models of sound whose own code needs all heads: WavLM and conformers with rotary positions."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .classes import part

__all__ = ["rotary_forward", "wavlm_forward"]


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
    return self.out_proj(output), probabilities, position_bias


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
