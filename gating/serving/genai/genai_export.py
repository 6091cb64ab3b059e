"""Export of compact decoders to ONNX Runtime GenAI, which generates text with a key-value cache."""

import copy
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from gating.compact.decoders import sizes_of
from gating.errors import InputError
from gating.serving.contexts import checked_context, rotary_parameters
from gating.serving.copies import copy_in_float32
from gating.serving.dummy_heads import with_dummy_heads
from gating.serving.exporting import (
    Exportable,
    exporting,
    load_processor,
    megabytes_of,
    reporting_failure,
    special_tokens,
)
from gating.serving.formats import ServingReport
from gating.serving.genai.check import check_in_genai, check_tokenizer
from gating.serving.genai.graph import DTYPES, Dtype, TokenIds, build_graph
from gating.serving.genai.heads import DecoderHeads

__all__ = ["check_genai", "export_genai"]

# Class of the runtime's builder by model type; all were compared with transformers token by token.
_BUILDERS: Mapping[str, str] = {
    "llama": "LlamaModel",
    "mistral": "MistralModel",
    "qwen2": "QwenModel",
    "qwen3": "Qwen3Model",
    "gemma": "GemmaModel",
    "gemma2": "Gemma2Model",
    "gemma3_text": "Gemma3Model",
    "phi3": "Phi3MiniModel",
    "granite": "GraniteModel",
    "smollm3": "SmolLM3Model",
    "ernie4_5": "ErnieModel",
    "nemotron": "NemotronModel",
    "gpt_oss": "GPTOSSModel",
}
_ACTIVATIONS = frozenset(
    {"silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "relu2"},
)
# Frequencies that do not depend on the length of the text, so that a table holds them.
_FIXED_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
# The builder takes quantized experts from the files of the original model.
_ONLY_F32 = frozenset({"gpt_oss"})


def check_genai(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` with the reason for which ONNX Runtime GenAI cannot run a model."""
    sizes = sizes_of(model)
    name, config = type(model).__name__, cast("Any", model.config)
    if config.model_type not in _BUILDERS or not name.endswith("ForCausalLM"):
        raise InputError(f"{name} is not supported for ONNX Runtime GenAI, but {', '.join(_BUILDERS)} are.")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in _ACTIVATIONS:
        raise InputError(f"{name} has hidden_act={activation!r}, which ONNX Runtime GenAI does not have.")
    if config.model_type == "gpt_oss" and 0 in sizes.num_neurons:
        raise InputError(f"{name} has a layer without neurons, which ONNX Runtime GenAI's experts cannot be.")
    for rotary in rotary_parameters(config):
        kind = rotary.get("rope_type", "default")
        if kind not in _FIXED_ROTATIONS:
            raise InputError(
                f"{name} has rope_type={kind!r}, which changes with the length of the text, so that no table for "
                "ONNX Runtime GenAI can hold it."
            )


def export_genai(
    model_or_directory: Exportable,
    save_path: str | os.PathLike[str],
    *,
    dtype: Dtype = "f32",
    overwrite: bool = False,
) -> ServingReport:
    """Export a decoder to a folder for ONNX Runtime GenAI, and compare the tokens that it writes.

    Every layer keeps its own counts of heads, key-value groups and neurons, and the cache has their size. An emptied
    attention block gets one group that does nothing, because the runtime's cache has an entry for every layer. Heads
    of another width than a multiple of 16 are padded with zeros, which the runtime's attention asks for.

    The folder has ``model.onnx``, ``genai_config.json`` and the tokenizer. It is checked with tokens after prompts of
    several lengths, one at a time and in a padded batch. Errors are those of
    :func:`~gating.serving.formats.export_compact`.

    Args:
        model_or_directory: A compact decoder, its folder, or its name on the hub.
        save_path: The folder.
        dtype: Type of the weights of linear layers: ``f32``, or ``int8`` or ``int4`` in blocks of 32, which changes
            the logits; the report says by how much. All else is in float32.
        overwrite: Whether an earlier export may be replaced.
    """
    if dtype not in DTYPES:
        raise InputError(
            f"dtype={dtype!r} is not a type of ONNX Runtime GenAI's weights: give one of {', '.join(DTYPES)}."
        )
    place = Path(save_path)
    with exporting(model_or_directory, place, format="onnx-genai", overwrite=overwrite) as opened:
        model, origin, folder = opened
        genai = importlib.import_module("onnxruntime_genai")
        if dtype != "f32" and model.config.model_type in _ONLY_F32:
            raise InputError(
                f"dtype={dtype!r} is not available for {type(model).__name__}: export it with dtype='f32'."
            )
        processor = load_processor(origin)
        tokens = _token_ids(model, processor)
        sentences = _write_checked(genai, model, folder, dtype=dtype, tokens=tokens)
        note = checked_context(model.config)[1]
        sentences += [] if note is None else [note]
        if not special_tokens("eos", model, processor):
            sentences.append(f"No token is known that ends a text: the runtime ends it at token {tokens.eos[0]}")
        if processor is not None:
            sentences += _save_tokenizer(genai, model, folder, processor)
        megabytes = megabytes_of(folder)
    return ServingReport(place, megabytes, tuple(sentences))


def _write_checked(genai: Any, model: PreTrainedModel, folder: Path, *, dtype: Dtype, tokens: TokenIds) -> list[str]:
    """Write the graph and its configuration, check them, and return the result as sentences."""
    with reporting_failure(model, "ONNX Runtime GenAI"):
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        reference = copy_in_float32(model)
        # The builder changes some modules of its copy, which shares their tensors.
        copied = with_dummy_heads(copy_in_float32(reference))
        heads = build_graph(copied, folder, builder=_BUILDERS[model.config.model_type], dtype=dtype, tokens=tokens)
        return [_describe(model, heads, dtype), *check_in_genai(genai, reference, folder, dtype=dtype, tokens=tokens)]


def _describe(model: PreTrainedModel, heads: DecoderHeads, dtype: str) -> str:
    """Return the sizes of the layers as a sentence."""
    sizes = sizes_of(model)
    parts = [
        f"{len(sizes.names)} layers of {_range(heads.sizes.num_heads)} query heads with "
        f"{_range(heads.sizes.num_key_value_heads)} key-value groups, weights in {dtype}"
    ]
    if sizes.emptied:
        parts.append(f"{len(sizes.emptied)} of them without heads have a group that does nothing")
    if heads.width != sizes.head_dim:
        parts.append(f"heads of {sizes.head_dim} entries are padded with zeros to {heads.width}")
    return "; ".join(parts)


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least} to {most}" if least < most else str(least)


def _save_tokenizer(genai: Any, model: PreTrainedModel, folder: Path, tokenizer: Any) -> list[str]:
    """Save the tokenizer, and return a sentence if the runtime does not make the same tokens with it."""
    saved = copy.deepcopy(tokenizer)
    # The runtime does not read the number that stands for no limit.
    saved.model_max_length = min(saved.model_max_length, model.config.max_position_embeddings)
    saved.save_pretrained(folder)
    return check_tokenizer(genai, folder, tokenizer)


def _token_ids(model: PreTrainedModel, tokenizer: Any) -> TokenIds:
    """Return the special tokens of a decoder; the runtime needs one of each, and takes token 0 by default."""
    bos, eos, pad = (special_tokens(kind, model, tokenizer) for kind in ("bos", "eos", "pad"))
    fill = (*pad, *eos, 0)[0]
    return TokenIds(bos=(*bos, *eos, 0)[0], eos=tuple(eos or [fill]), pad=fill)
