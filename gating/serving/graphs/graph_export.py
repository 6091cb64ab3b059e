"""Export of models to ONNX and OpenVINO, through the exporters of transformers."""

import functools
import importlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from gating.compact.save import Processor
from gating.embedding.parts import MODULES, SentenceHead, read_parts
from gating.loader.record import dense_config
from gating.proof.probe import make_probe
from gating.report.metadata import is_sentence_folder
from gating.serving.contexts import checked_context
from gating.serving.copies import as_converted, copy_in_float32, with_dummy_heads
from gating.serving.exporting import Exportable, exporting, load_processor, megabytes_of, writes_text
from gating.serving.formats import FORMATS, ServingReport
from gating.serving.graphs.check import batch_to_trace, check_graph, input_names
from gating.serving.graphs.runtime import GraphModel

GraphFormat = Literal["onnx", "openvino"]
# Activations in groups of so many become 8-bit integers at run time, too: a fifth faster than floats.
_ACTIVATIONS = "128"


def export_onnx(
    model_or_directory: Exportable,
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    int8: bool = False,
    overwrite: bool = False,
) -> ServingReport:
    """Export a model to ONNX, and compare its results with the model's in ONNX Runtime.

    A decoder becomes a graph with its key-value cache: inputs such as ``input.cache.layers.0.keys``, ``[batch, groups,
    length, width]``, whose next values are the outputs ``output.cache.layers.0.keys``. Each layer keeps its own counts;
    one without heads gets a head that does nothing. The check compares greedy tokens, alone and in a padded batch. Any
    other model becomes one forward pass, and is compared on padded batches of several sizes. From a folder of
    sentence-transformers, the graph also has the output ``sentence_embedding``, ``[batch, width]``, and lies where
    ``SentenceTransformer(folder, backend="onnx")`` looks for it, in ``onnx/model.onnx``.

    Args:
        model_or_directory: A compact model, its folder, or its name on the hub.
        save_directory: Folder for the export; it is written whole or not at all.
        tokenizer: Tokenizer or processor of a model: it determines the inputs and is saved with the export. By default
            the one in the model's folder.
        int8: Whether the weights of matrix products become 8-bit integers, with activations quantized at run time. The
            graph with float weights is checked first. The effect on the accuracy depends on the model:
            :class:`gating.serving.graphs.runtime.GraphModel` is a module for measuring it.
        overwrite: Whether an earlier folder may be renamed.

    Returns:
        The folder, the inputs and the largest difference of the outputs.

    Raises:
        ImportError: A package of the export is not installed.
        FileExistsError: The folder is not empty and ``overwrite`` is false.
        RuntimeError: The results differ. Nothing is written, as after an error of the exporter.
    """
    return _export(model_or_directory, Path(save_directory), "onnx", tokenizer, int8=int8, overwrite=overwrite)


def export_openvino(
    model_or_directory: Exportable,
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    int8: bool = False,
    overwrite: bool = False,
) -> ServingReport:
    """Export a model to OpenVINO, and compare its results with the model's on the CPU.

    A decoder becomes a model whose state is its key-value cache, as ``openvino_genai.LLMPipeline`` and optimum-intel
    take it. All else is as in :func:`export_onnx`; the file of a sentence-transformers folder is
    ``openvino/openvino_model.xml``.
    """
    return _export(model_or_directory, Path(save_directory), "openvino", tokenizer, int8=int8, overwrite=overwrite)


def _export(
    model_or_directory: Exportable,
    place: Path,
    format: GraphFormat,
    tokenizer: Processor | None,
    *,
    int8: bool,
    overwrite: bool,
) -> ServingReport:
    with exporting(model_or_directory, place, format=format, overwrite=overwrite) as (model, origin, folder):
        processor: Any = load_processor(origin) if tokenizer is None else tokenizer
        sentences_from = origin if origin is not None and is_sentence_folder(origin) else None
        sentences, graph, difference = _write_checked(model, folder, format, processor, sentences_from, int8=int8)
        _save_settings(model, folder, sentences_from)
        if processor is not None:
            processor.save_pretrained(folder)
        return ServingReport(place, megabytes_of(folder), sentences, graph.inputs, difference)


def _write_checked(
    model: PreTrainedModel,
    folder: Path,
    format: GraphFormat,
    processor: Any,
    sentences_from: Path | None,
    *,
    int8: bool,
) -> tuple[tuple[str, ...], GraphModel, float | None]:
    """Write the graph, check it, with float weights first, and return sentences on it, itself, and its difference."""
    runtime, is_sentence = FORMATS[format].runtime, sentences_from is not None
    # A cache has an entry for each layer, and OpenVINO no tensors without elements.
    needs_heads = writes_text(model) or format == "openvino"
    reference, copied = copy_in_float32(model), as_converted(with_dummy_heads(model) if needs_heads else model)
    if sentences_from is not None:
        head = SentenceHead.load(sentences_from)
        pool(reference, head)
        pool(copied, head)
    with quiet_exporters():
        if writes_text(model):
            step, batch = decoding_step(copied)
        else:
            step, batch = copied, batch_to_trace(copied, input_names(copied, processor), processor)
        exported = export_graph(step, batch, format)
        sentences = list[str]()
        for is_int8 in (False, True)[: 1 + int8]:
            if is_int8:
                quantize(exported, batch, format)
            save_graph(exported, folder, format, is_sentence=is_sentence)
            graph = GraphModel(model.config, folder)
            difference, found = check_graph(reference, graph, processor, runtime, int8=is_int8)
            sentences += found
    note = checked_context(model.config)[1]
    return (*sentences, *([] if note is None else [note])), graph, difference


def _save_settings(model: PreTrainedModel, folder: Path, sentences_from: Path | None) -> None:
    """Save the configuration without the record and the names of code, and the modules of sentence-transformers."""
    config = dense_config(model.config)
    if writes_text(model) and (context := checked_context(config)[0]) is not None:
        config.max_position_embeddings = context
    config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if sentences_from is not None:
        for path in (*sentences_from.glob("*sentence*.json"), sentences_from / MODULES):
            shutil.copyfile(path, folder / path.name)
        for part in read_parts(sentences_from):
            if part.is_dir():  # A normalization may have no settings.
                shutil.copytree(part, folder / part.name)


def export_graph(model: PreTrainedModel, batch: Mapping[str, Any], format: GraphFormat) -> Any:
    """Export a model to a graph for batches of any size, with one batch as an example."""
    exporters: Any = importlib.import_module("transformers.exporters")
    config = exporters.AutoExportConfig.from_dict({"export_format": format, "dynamic": True})
    with torch.no_grad():
        return exporters.AutoHfExporter.from_config(config).export(model, dict(batch), config=config)


def decoding_step(model: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a decoder, and the inputs of a forward pass of several tokens after a text that is in its cache.

    A graph of this pass also reads a prompt, with an empty cache.
    """
    decompose: Any = importlib.import_module("transformers.exporters.utils").decompose_for_generation
    tokens = make_probe(model, batch_size=2, length=7)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    model.config.use_cache = True
    # Settings of the model, such as beams, are about its use.
    settings = GenerationConfig(pad_token_id=0)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    with torch.no_grad():
        steps = decompose(model, inputs, generation_config=settings, multi_token_decode=True)
    module, inputs = steps["decode"]
    return module, inputs


def quantize(exported: Any, batch: Mapping[str, Any], format: GraphFormat) -> None:
    """Turn the weights of matrix products in an export into 8-bit integers, in place; activations follow at run time.

    Products of two activations, as in attention, stay products of floats.
    """
    (component,) = exported.components.values()
    if format == "openvino":
        nncf: Any = importlib.import_module("nncf")
        component.program = nncf.compress_weights(component.program)
        component.program.set_rt_info(_ACTIVATIONS, ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        return
    exporters: Any = importlib.import_module("transformers.exporters")
    # One scale for a whole matrix would be that of its largest weight, and a compensation makes some weights large.
    options = {
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "per_channel": True,
        "extra_options": {"MatMulConstBOnly": True},
    }
    # ONNX Runtime would ask for the optimizations that the exporter has applied.
    component.program.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    quantizer = exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeDynamicConfig(**options))
    component.program = quantizer.quantize(component.program, dict(batch), exported.export_format)


def save_graph(exported: Any, folder: Path, format: GraphFormat, *, is_sentence: bool) -> None:
    """Save an export in a folder, from which ``ExportedModel.from_pretrained(folder)`` of transformers loads it.

    For sentence-transformers, the graph lies in ``onnx/`` or ``openvino/``.
    """
    place = folder / format if is_sentence else folder
    place.mkdir(exist_ok=True)
    if is_sentence and format == "onnx":
        onnx_ir: Any = importlib.import_module("onnx_ir")
        # The name of the weights that text-embeddings-inference looks for on the hub.
        onnx_ir.save(exported.program, place / "model.onnx", external_data="model.onnx_data")
    else:
        exported.save_pretrained(place)


def pool(model: Any, head: Callable[..., Tensor]) -> None:
    """Let a copy of a model return also the embeddings of texts, ``sentence_embedding``, in place.

    ``head`` is a function of the outputs and the attention mask.
    """
    forward = model.forward

    @functools.wraps(forward)
    def forward_with_pooling(**inputs: Any) -> Any:
        outputs = dict(forward(**inputs))
        return {**outputs, "sentence_embedding": head(outputs, inputs["attention_mask"])}

    model.forward = forward_with_pooling


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the progress, the log and the warnings of exporters, which are about their own code, in a ``with`` block.

    Their loggers have no common name. The check of an export finds failures.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
