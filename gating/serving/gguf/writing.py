"""GGUF files: their metadata and tensors, written one after another."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

import gguf
from gating.compact.decoders import sizes_of
from gating.errors import InputError
from gating.serving.gguf.architectures import Architecture, context_length, rope_type
from gating.serving.gguf.tensors import decoder_tensors, widths_in_file
from gating.serving.gguf.tokenizer import add_placeholders, add_tokenizer, copy_tokenizer
from gguf import GGMLQuantizationType as Type

__all__ = ["write_gguf"]

_TYPES = {
    "f32": (Type.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Type.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


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

    Args:
        model: The decoder.
        architecture: Its architecture in llama.cpp.
        file: The new file.
        dtype: Type of the matrices.
        tokenizer: Folder with its tokenizer; with neither folder nor file, tokens are placeholders.
        tokenizer_from: GGUF file whose tokenizer is copied instead.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer; found by its regular expression when left out.

    Raises:
        ValueError: The tokenizer cannot be converted, or is of another model.
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
        _write_tensors(writer, lambda: decoder_tensors(model, architecture, sizes_of(model)), _TYPES[dtype][0])
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, model: PreTrainedModel, architecture: Architecture) -> None:
    config: Any = model.config
    sizes, context = sizes_of(model), context_length(config)[0]
    widths = widths_in_file(architecture, sizes)
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


def _type_of(tensor: Tensor, dtype: Type) -> Type:
    """Return the type of a tensor in a file: vectors are float32, and blocks of 32 values need such rows."""
    if tensor.dim() < 2:
        return Type.F32
    return Type.F16 if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[dtype][0] else dtype
