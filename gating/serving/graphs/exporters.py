"""The exporters of transformers: graphs for any batch, with a cache for decoders, and 8-bit weights."""

import functools
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from gating.errors import InputError
from gating.proof.probe import make_probe

__all__ = ["GraphFormat", "decoding_step", "export_graph", "pooled", "quantize", "quiet_exporters", "save_graph"]

GraphFormat = Literal["onnx", "openvino"]
# Operations of ONNX on weights of 8-bit integers.
_QUANTIZED = ("MatMulInteger", "DynamicQuantizeMatMul")
# Larger graphs of ONNX have their weights in a second file; a file of protobuf has at most 2 GB.
_MOST_BYTES = 1_500_000_000
# Activations in groups of so many become 8-bit integers at run time, too: a fifth faster than floats.
_ACTIVATIONS = "128"


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
    with torch.no_grad():
        steps = decompose(
            model,
            {"input_ids": tokens, "attention_mask": mask},
            generation_config=settings,
            multi_token_decode=True,
        )
    module, inputs = steps["decode"]
    return module, inputs


def quantize(exported: Any, batch: Mapping[str, Any], format: GraphFormat) -> None:
    """Turn the weights of matrix products in an export into 8-bit integers, in place; activations follow at run time.

    Products of two activations, as in attention, stay products of floats.

    Raises:
        ValueError: No matrix product has a constant weight.
    """
    (component,) = exported.components.values()
    if format == "openvino":
        nncf: Any = importlib.import_module("nncf")
        component.program = nncf.compress_weights(component.program)
        component.program.set_rt_info(_ACTIVATIONS, ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        return
    exporters: Any = importlib.import_module("transformers.exporters")
    options = {"op_types_to_quantize": ["MatMul", "Gemm"], "extra_options": {"MatMulConstBOnly": True}}
    # ONNX Runtime would ask for the optimizations that the exporter has applied.
    component.program.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    quantizer = exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeDynamicConfig(**options))
    component.program = quantizer.quantize(component.program, dict(batch), exported.export_format)
    if not any(node.op_type in _QUANTIZED for graph in component.program.graphs() for node in graph):
        raise InputError("int8=True has no effect on a graph without products with weight matrices: leave it out.")


def save_graph(exported: Any, folder: Path, format: GraphFormat, *, is_sentence: bool) -> None:
    """Save an export in a folder.

    ``ExportedModel.from_pretrained(folder)`` of transformers loads it. For sentence-transformers, which looks for
    ``onnx/model.onnx`` or ``openvino/openvino_model.xml``, the graph alone is saved there.
    """
    if not is_sentence:
        exported.save_pretrained(folder)
        return
    (folder / format).mkdir(exist_ok=True)
    program = exported.program
    if format == "openvino":
        openvino: Any = importlib.import_module("openvino")
        openvino.save_model(program, str(folder / format / "openvino_model.xml"), compress_to_fp16=False)
        return
    onnx_ir: Any = importlib.import_module("onnx_ir")
    values = [value.const_value for value in program.graph.initializers.values()]
    size = sum(value.nbytes for value in values if value is not None)
    beside = "model.onnx_data" if size > _MOST_BYTES else None
    onnx_ir.save(program, folder / format / "model.onnx", external_data=beside)


@contextmanager
def pooled(model: Any, head: Callable[..., Tensor] | None) -> Iterator[None]:
    """Let a model return also the embeddings of texts, ``sentence_embedding``, in a ``with`` block.

    Args:
        model: The model.
        head: Function of its outputs and the attention mask; None to leave the outputs as they are.
    """
    if head is None:
        yield
        return
    forward, own = model.forward, vars(model).get("forward")

    @functools.wraps(forward)
    def forward_with_pooling(**inputs: Any) -> Any:
        outputs = dict(forward(**inputs))
        return {**outputs, "sentence_embedding": head(outputs, inputs["attention_mask"])}

    model.forward = forward_with_pooling
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if own is not None:
            model.forward = own


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the progress, the log and the warnings of exporters, which are about their own code, in a ``with`` block.

    Their loggers have no common name. The check of an export finds what matters.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
