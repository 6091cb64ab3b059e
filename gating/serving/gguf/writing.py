"""GGUF files: their metadata, and the tensors under the names and in the layouts of llama.cpp, one after another."""

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import gguf
from gating.errors import InputError
from gating.serving.decoders import DecoderSizes, sizes_of
from gating.serving.gguf.architectures import Architecture, context_length, rope_type
from gating.serving.gguf.tokenizer import add_placeholders, add_tokenizer, copy_tokenizer
from gguf import GGMLQuantizationType as Type

_TYPES = {
    "f32": (Type.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Type.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
# Weights of 8 and 4 bits come in blocks of so many, also those that llama-quantize makes of 16 bits.
_BLOCK = 32


def write_gguf(
    model: PreTrainedModel,
    architecture: Architecture,
    file: Path,
    *,
    dtype: str,
    tokenizer: Path | None = None,
    tokenizer_from: str | os.PathLike[str] | None = None,
    pre_tokenizer: str | None = None,
) -> None:
    """Write a decoder with attention in all layers that need it as a GGUF file, whose vectors are float32.

    The tokenizer is that of a folder or that of another file; with neither, tokens are placeholders.
    """
    writer = gguf.GGUFWriter(file, architecture.name)
    try:
        _add_metadata(writer, model, architecture)
        writer.add_file_type(_TYPES[dtype][1])
        vocab_size = len(cast(Tensor, model.get_input_embeddings().weight))
        if tokenizer_from is not None:
            copy_tokenizer(writer, tokenizer_from, vocab_size=vocab_size)
        elif tokenizer is not None:
            add_tokenizer(writer, tokenizer, model, vocab_size=vocab_size, pre_tokenizer=pre_tokenizer)
        else:
            add_placeholders(writer, model, vocab_size=vocab_size)
        _write_tensors(writer, lambda: _decoder_tensors(model, architecture, sizes_of(model)), _TYPES[dtype][0])
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, model: PreTrainedModel, architecture: Architecture) -> None:
    config: Any = model.config
    sizes, context = sizes_of(model), context_length(config)[0]
    widths = _widths_in_file(architecture, sizes)
    has_own_heads, has_own_widths = (kind in architecture.sizes_per_layer for kind in ("heads", "neurons"))
    writer.add_name(Path(str(config.name_or_path or config.model_type)).name)
    writer.add_block_count(len(widths))
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_head_count(list(sizes.num_heads) if has_own_heads else sizes.num_heads[0])
    writer.add_head_count_kv(list(sizes.num_key_value_heads) if has_own_heads else sizes.num_key_value_heads[0])
    writer.add_feed_forward_length(widths if has_own_widths else widths[0])
    _add_rope(writer, config, sizes.head_dim)
    if architecture.name == "step35":
        # The window is as long as the context, because layers of full attention rotate only half of each head there.
        writer.add_sliding_window(context)
        writer.add_sliding_window_pattern([True] * len(widths))
        writer.add_float32("step35.rope.freq_base_swa", float(config.rope_parameters["rope_theta"]))
        writer.add_uint32("step35.rope.dimension_count_swa", sizes.head_dim)
        writer.add_expert_feed_forward_length(widths[0])


def _add_rope(writer: gguf.GGUFWriter, config: Any, head_dim: int) -> None:
    rope, kind = config.rope_parameters, rope_type(config)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


def _write_tensors(writer: gguf.GGUFWriter, tensors: Callable[[], Iterator[tuple[str, Tensor]]], dtype: Type) -> None:
    """Write the tensors one at a time: a converted copy of a large model need not fit in memory."""
    for name, tensor in tensors():
        kind = _type_of(tensor, dtype)
        block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
        num_bytes = tensor.numel() // block_size * type_size
        writer.add_tensor_info(name, list(tensor.shape), np.dtype(np.float32), num_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors():
        values = tensor.detach().cpu().float().contiguous().numpy()
        kind = _type_of(tensor, dtype)
        if kind == Type.F16 and np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
            raise InputError(f"{name} has values beyond the range of f16: give bf16 or f32 as dtype.")
        writer.write_tensor_data(gguf.quants.quantize(values, kind))


def round_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model with the values that 8-bit weights of a file stand for; llama.cpp rounds inputs, too."""
    copied: PreTrainedModel = deepcopy(model).float()
    with torch.no_grad():
        for weights in copied.parameters():
            if (kind := _type_of(weights, Type.Q8_0)) == Type.Q8_0:
                blocks = gguf.quants.quantize(weights.detach().cpu().numpy(), kind)
                weights.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    return copied


def _type_of(tensor: Tensor, dtype: Type) -> Type:
    """Return the type of a tensor in a file: vectors are float32, and blocks of 32 values need such rows."""
    if tensor.dim() < 2:
        return Type.F32
    return Type.F16 if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[dtype][0] else dtype


def _widths_in_file(architecture: Architecture, sizes: DecoderSizes) -> list[int]:
    """Return the number of neurons of each layer in the file: whole blocks, and equal ones where they have to be.

    A layer without neurons has a block of dummy ones, too: llama.cpp would leave it out with its attention.
    """
    widths = [max(_BLOCK, width + -width % _BLOCK) for width in sizes.num_neurons]
    return widths if "neurons" in architecture.sizes_per_layer else [max(widths)] * len(widths)


def _decoder_tensors(
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
    widths = _widths_in_file(architecture, sizes)
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
    """Return the rows of heads, ``[heads * head_dim, ...]``, with the two halves of each head interleaved."""
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _llama3_factors(config: Any, head_dim: int) -> Tensor:
    """Return the factors by which LLaMA 3 divides the frequencies of rotary embeddings, ``[head_dim / 2]``."""
    frequencies: Tensor = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))[0]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    unscaled: Tensor = torch.pow(float(config.rope_parameters["rope_theta"]), -exponents)
    return (unscaled / frequencies.double()).float()
