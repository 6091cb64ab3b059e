"""The tensors of a decoder under the names and in the layouts of llama.cpp."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gating.compact.decoders import DecoderSizes
from gating.serving.gguf.architectures import Architecture, rope_type

__all__ = ["decoder_tensors", "widths_in_file"]

# Weights of 8 and 4 bits come in blocks of so many, also those that llama-quantize makes of 16 bits.
_BLOCK = 32


def widths_in_file(architecture: Architecture, sizes: DecoderSizes) -> list[int]:
    """Return the number of neurons of each layer in the file; more dummy ones make them equal where they have to be.

    Dummy ones without weights fill the last block up. A layer without neurons has a block of them, too: llama.cpp
    would leave it out with its attention.
    """
    widths = [max(_BLOCK, width + -width % _BLOCK) for width in sizes.num_neurons]
    return widths if "neurons" in architecture.sizes_per_layer else [max(widths)] * len(widths)


def decoder_tensors(
    model: PreTrainedModel, architecture: Architecture, sizes: DecoderSizes
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model with their names in a file."""
    base: Any = model.base_model
    yield "token_embd.weight", base.embed_tokens.weight
    yield "output_norm.weight", base.norm.weight
    if not model.config.tie_word_embeddings:
        yield "output.weight", model.get_output_embeddings().weight
    if rope_type(model.config) == "llama3":
        yield "rope_freqs.weight", _llama3_factors(model.config, sizes.head_dim)
    widths = widths_in_file(architecture, sizes)
    for number, layer in enumerate(base.layers):
        prefix = f"blk.{number}."
        if sizes.num_heads[number]:
            yield f"{prefix}attn_norm.weight", layer.input_layernorm.weight
            attention = _attention_tensors(layer.self_attn, architecture, sizes.head_dim)
            yield from ((prefix + name, tensor) for name, tensor in attention)
        yield f"{prefix}ffn_norm.weight", layer.post_attention_layernorm.weight
        yield from ((prefix + name, tensor) for name, tensor in _feed_forward_tensors(layer.mlp, widths[number]))


def _attention_tensors(attention: Any, architecture: Architecture, head_dim: int) -> Iterator[tuple[str, Tensor]]:
    linears = {name: getattr(attention, f"{name}_proj") for name in "qkv"}
    for kind in ("weight", "bias"):
        rows = {
            name: _in_pairs(getattr(linear, kind), head_dim)
            if architecture.rotates_pairs and name != "v"
            else getattr(linear, kind)
            for name, linear in linears.items()
            if getattr(linear, kind) is not None
        }
        if architecture.is_fused and rows:
            yield f"attn_qkv.{kind}", torch.cat(list(rows.values()))
        else:
            yield from ((f"attn_{name}.{kind}", tensor) for name, tensor in rows.items())
    yield "attn_output.weight", attention.o_proj.weight
    if attention.o_proj.bias is not None:
        yield "attn_output.bias", attention.o_proj.bias
    if architecture.has_norms:
        yield "attn_q_norm.weight", attention.q_norm.weight
        yield "attn_k_norm.weight", attention.k_norm.weight


def _feed_forward_tensors(feed_forward: Any, width: int) -> Iterator[tuple[str, Tensor]]:
    for ours, theirs, dim in (("gate_proj", "ffn_gate", 0), ("up_proj", "ffn_up", 0), ("down_proj", "ffn_down", 1)):
        linear = getattr(feed_forward, ours)
        yield f"{theirs}.weight", _filled(linear.weight, width, dim)
        if linear.bias is not None:
            yield f"{theirs}.bias", linear.bias if dim else _filled(linear.bias, width, 0)


def _filled(tensor: Tensor, size: int, dim: int) -> Tensor:
    """Return a tensor with zeros at the end of one dimension, up to a size."""
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim) if shape[dim] else tensor


def _in_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """Return the rows of heads with the two halves of each head interleaved.

    Args:
        rows: Weight, ``[heads * head_dim, in_features]``, or bias, ``[heads * head_dim]``.
        head_dim: Width of a head.
    """
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _llama3_factors(config: Any, head_dim: int) -> Tensor:
    """Return the factors by which LLaMA 3 divides the frequencies of its rotary embeddings, ``[head_dim / 2]``.

    Args:
        config: Configuration whose ``rope_parameters`` are of the type ``llama3``.
        head_dim: Width of a head.
    """
    frequencies: Tensor = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))[0]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    unscaled: Tensor = torch.pow(float(config.rope_parameters["rope_theta"]), -exponents)
    return (unscaled / frequencies.double()).float()
