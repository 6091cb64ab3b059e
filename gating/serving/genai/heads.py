"""Attention heads as ONNX Runtime GenAI takes them: separate projections, and widths of a multiple of 16."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.compact.decoders import DecoderSizes, sizes_of

__all__ = ["DecoderHeads", "lay_out_heads"]

# GroupQueryAttention takes head widths of a multiple of 16, of which a multiple of 16 is rotated.
_STEP = 16


@dataclass(frozen=True)
class DecoderHeads:
    """Sizes and places of the heads of a decoder.

    Attributes:
        sizes: Numbers of heads and groups of each layer, and the model's own width of a head.
        width: Entries of a head, those that are always zero included.
        places: Places of the model's own entries in a head, ``[head_dim]``.
        rotary_width: Entries that are rotated, zeros included.
        rotary_dim: Number of the model's own entries that are rotated.
    """

    sizes: DecoderSizes
    width: int
    places: Tensor
    rotary_width: int
    rotary_dim: int

    @property
    def filled(self) -> float:
        """Return the share of a head's entries that are the model's own."""
        return len(self.places) / self.width

    def spread(self, weight: Tensor) -> Tensor:
        """Return a weight with zeros between its rows, ``[heads x width, ...]`` from ``[heads x head_dim, ...]``."""
        rows = weight.detach().reshape(-1, len(self.places), *weight.shape[1:])
        spread = rows.new_zeros(len(rows), self.width, *rows.shape[2:])
        spread[:, self.places] = rows
        return spread.flatten(0, 1)

    def rotary_table(self, table: Tensor, fill: float) -> Tensor:
        """Return cosines or sines, ``[positions, rotary_width / 2]``, of any table whose first columns have them."""
        half = self.rotary_dim // 2
        return nn.functional.pad(table[:, :half], (0, self.rotary_width // 2 - half), value=fill)


def lay_out_heads(model: PreTrainedModel, *, interleaved: bool) -> DecoderHeads:
    """Split fused projections of a decoder, and pad its heads with zeros to a width that the runtime takes.

    The model is changed: its weights serve the runtime, and its own forward pass does not run any more.
    """
    sizes, base = sizes_of(model), cast(Any, model.base_model)
    rotary_dim = _rotary_dim(model) or sizes.head_dim
    places, width, rotary_width = _places(sizes.head_dim, rotary_dim, interleaved=interleaved)
    laid_out = DecoderHeads(sizes, width, places, rotary_width, rotary_dim)
    for layer, num_heads in zip(base.layers, sizes.num_heads, strict=True):
        _split_projection(layer.self_attn, num_heads * sizes.head_dim)
        if width != sizes.head_dim:
            _pad_projections(layer.self_attn, laid_out)
    return laid_out


def _rotary_dim(model: PreTrainedModel) -> int:
    """Return the number of rotated entries of a head: two for each frequency."""
    buffers = (buffer for name, buffer in model.base_model.named_buffers() if name.endswith("inv_freq"))
    return 2 * max((buffer.numel() for buffer in buffers), default=0)


def _places(head_dim: int, rotary_dim: int, *, interleaved: bool) -> tuple[Tensor, int, int]:
    """Return the place of each entry of a head, the padded width of the head, and that of its rotated part."""
    rotary_width = math.ceil(rotary_dim / _STEP) * _STEP
    width = math.ceil((rotary_width + head_dim - rotary_dim) / _STEP) * _STEP
    halves = torch.arange(rotary_dim)
    if not interleaved:
        # The runtime rotates an entry of the first half with that of the same number in the second.
        halves[rotary_dim // 2 :] += (rotary_width - rotary_dim) // 2
    return torch.cat([halves, torch.arange(head_dim - rotary_dim) + rotary_width]), width, rotary_width


def _split_projection(attention: Any, query_width: int) -> None:
    """Replace a fused projection of queries, keys and values by three."""
    fused = getattr(attention, "qkv_proj", None)
    if fused is None:
        return
    group_width = (fused.weight.shape[0] - query_width) // 2
    sizes = [query_width, group_width, group_width]
    biases = [None] * 3 if fused.bias is None else fused.bias.detach().split(sizes)
    for name, weight, bias in zip("qkv", fused.weight.detach().split(sizes), biases, strict=True):
        setattr(attention, f"{name}_proj", _linear(weight, bias))
    attention.qkv_proj = None


def _pad_projections(attention: Any, heads: DecoderHeads) -> None:
    """Put zeros between the rows of queries, keys and values, and between the columns of the output projection."""
    for name in ("q_proj", "k_proj", "v_proj"):
        linear = getattr(attention, name)
        bias = None if linear.bias is None else heads.spread(linear.bias)
        setattr(attention, name, _linear(heads.spread(linear.weight), bias))
    output = attention.o_proj
    attention.o_proj = _linear(heads.spread(output.weight.T).T.contiguous(), output.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
