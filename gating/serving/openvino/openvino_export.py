"""Export of compact models to OpenVINO: decoders with a key-value cache, and other models with one forward pass."""

import errno
import importlib
import os
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from gating.compact.decoders import sizes_of
from gating.errors import InputError, OperationError
from gating.loader.record import dense_config
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.serving.contexts import checked_context
from gating.serving.copies import as_converted, copy_in_float32
from gating.serving.exporting import (
    Exportable,
    exporting,
    load_processor,
    megabytes_of,
    reporting_failure,
    special_tokens,
)
from gating.serving.formats import ServingReport
from gating.serving.graphs.batches import batch_to_trace, input_names
from gating.serving.graphs.check import check_exported
from gating.serving.graphs.tracing import quiet_exporters
from gating.serving.openvino.decoder import check_decoder, check_layers, convert_decoder
from gating.serving.openvino.graph import CompiledGraph, convert_graph

__all__ = ["Dtype", "check_openvino", "export_openvino"]

Dtype = Literal["f32", "f16"]
_DTYPES: tuple[str, ...] = get_args(Dtype)
# Without these, the plugin rounds to 16 bits on some processors, and the cache to 8.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
_EXACT_CACHE = {**_EXACT, "KV_CACHE_PRECISION": "f32"}


def check_openvino(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` for a decoder with layers other than attention to all tokens or to a window."""
    if _writes_text(model):
        sizes_of(model)
        check_layers(model)


def _writes_text(model: PreTrainedModel) -> bool:
    decodes = model.can_generate() and not model.config.is_encoder_decoder
    return bool(decodes and model.main_input_name == "input_ids")


def export_openvino(
    model_or_directory: Exportable,
    save_path: str | os.PathLike[str],
    *,
    dtype: Dtype = "f32",
    overwrite: bool = False,
) -> ServingReport:
    """Export a model to a folder for OpenVINO, and compare its results with the model's on the CPU.

    A decoder becomes a model whose state is its key-value cache, as ``openvino_genai.LLMPipeline`` and optimum-intel
    take it; each layer keeps its own counts. Any other model becomes one forward pass. The check compares greedy tokens
    of a decoder, alone and in a padded batch, or the outputs for batches of several sizes. Errors are those of
    :func:`~gating.serving.formats.export_compact`.

    Args:
        model_or_directory: A compact model, its folder, or its name on the hub.
        save_path: Folder for ``openvino_model.xml``, its weights, ``config.json`` and the tokenizer.
        dtype: Type of the saved weights, ``f32`` or ``f16``.
        overwrite: Whether an earlier export may be replaced.
    """
    if dtype not in _DTYPES:
        raise InputError(f"dtype={dtype!r} is not a type of OpenVINO's weights here: give one of {', '.join(_DTYPES)}.")
    place = Path(save_path)
    with exporting(model_or_directory, place, format="openvino", overwrite=overwrite) as opened:
        model, origin, folder = opened
        openvino = importlib.import_module("openvino")
        processor = load_processor(origin)
        write = _write_decoder if _writes_text(model) else _write_graph
        with reporting_failure(model, "OpenVINO"), quiet_exporters(), torch.no_grad():
            sentences = write(openvino, model, folder, dtype, processor)
        _save_settings(model, folder)
        if processor is not None:
            processor.save_pretrained(folder)
        megabytes = megabytes_of(folder)
    return ServingReport(place, megabytes, tuple(sentences))


def _write_decoder(openvino: Any, model: PreTrainedModel, folder: Path, dtype: Dtype, processor: Any) -> list[str]:
    """Convert, save and check a decoder; return the result as sentences."""
    path = _save(openvino, convert_decoder(openvino, as_converted(model)), folder, dtype)
    pad = (*special_tokens("pad", model, processor), 0)[0]
    compiled = openvino.Core().compile_model(str(path), "CPU", _EXACT_CACHE)
    sizes, (context, note) = sizes_of(model), checked_context(model.config)
    layers = f"{len(sizes.names)} layers with a cache of {sum(sizes.num_key_value_heads)} key-value groups in all"
    return [
        f"{layers}, weights in {dtype}",
        *([] if note is None else [note]),
        *check_decoder(compiled, copy_in_float32(model), dtype=dtype, pad_token_id=pad, context=context),
    ]


def _write_graph(openvino: Any, model: PreTrainedModel, folder: Path, dtype: Dtype, processor: Any) -> list[str]:
    """Convert, save and check a model with one forward pass; return the result as sentences."""
    names, left_out = input_names(model, processor)
    core, converted, reference = openvino.Core(), as_converted(model), copy_in_float32(model)

    def write(dtype: Dtype) -> CompiledGraph:
        path = _save(openvino, convert_graph(openvino, converted, names, processor), folder, dtype)
        return CompiledGraph(core.compile_model(str(path), "CPU", _EXACT))

    try:
        graph = write("f32")
        check = check_exported(reference, graph, graph.axes, processor)
    except OperationError:
        # Masks of truth values make NaN of rows that are only padding; those of eager attention are numbers.
        converted.set_attn_implementation("eager")
        graph = write("f32")
        check = check_exported(reference, graph, graph.axes, processor)
    sentences = check.describe(left_out, checked_context(model.config)[1])
    if dtype == "f16":
        batch = batch_to_trace(reference, names, processor)
        change = max_relative_difference(forward_outputs(reference, batch), write(dtype)(**batch))
        sentences.append(f"With weights in f16, its outputs differ by {change:.1e}")
    return sentences


def _save(openvino: Any, converted: Any, folder: Path, dtype: Dtype) -> Path:
    path = folder / "openvino_model.xml"
    try:
        openvino.save_model(converted, str(path), compress_to_fp16=dtype == "f16")
    except RuntimeError as error:
        if "iostream" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    return path


def _save_settings(model: PreTrainedModel, folder: Path) -> None:
    """Save the configuration without the record and the names of code, which other packages would ask for."""
    config = dense_config(model.config)
    if _writes_text(model) and (context := checked_context(config)[0]) is not None:
        config.max_position_embeddings = context
    config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
