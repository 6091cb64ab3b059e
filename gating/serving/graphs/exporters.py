"""The exporters of transformers for graphs; quantization of their exports, and shapes of the inputs of these."""

import importlib
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import InputError

__all__ = ["GraphFormat", "export_graph", "input_axes", "of_transformers", "quantize"]

GraphFormat = Literal["onnx", "torch"]
# Names of the formats in transformers.
_NAMES: Mapping[GraphFormat, str] = {"onnx": "onnx", "torch": "dynamo"}
# Operations of ONNX on weights of 8-bit integers.
_QUANTIZED = ("MatMulInteger", "DynamicQuantizeMatMul")


def of_transformers() -> Any:
    """Return the package ``transformers.exporters``, which the type stubs of transformers lack."""
    return importlib.import_module("transformers.exporters")


def export_graph(model: PreTrainedModel, batch: Mapping[str, Tensor], format: GraphFormat) -> Any:
    """Export a model to a graph for batches of any size, with one batch as an example."""
    exporters = of_transformers()
    config = exporters.AutoExportConfig.from_dict({"export_format": _NAMES[format], "dynamic": True})
    return exporters.AutoHfExporter.from_config(config).export(model, batch, config=config)


def input_axes(exported: Any, format: GraphFormat) -> dict[str, tuple[object, ...]]:
    """Return the shape of each input of a loaded export; only fixed sizes are integers."""
    if format == "onnx":
        (runner,) = exported.runners.values()
        return {given.name: tuple(given.shape) for given in runner.session.get_inputs()}
    names = exported.program.graph_signature.user_inputs
    return {node.name: tuple(node.meta["val"].shape) for node in exported.program.graph.nodes if node.name in names}


def quantize(exported: Any, batch: Mapping[str, Tensor]) -> None:
    """Quantize the weights of matrix products in an exported ONNX model, in place; activations follow at run time.

    Products of two activations, as in attention, stay products of floats.

    Raises:
        ValueError: No matrix product has a constant weight.
    """
    exporters = of_transformers()
    options = {"op_types_to_quantize": ["MatMul", "Gemm"], "extra_options": {"MatMulConstBOnly": True}}
    (component,) = exported.components.values()
    # ONNX Runtime would ask for the optimizations that the exporter has applied.
    component.program.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    quantizer = exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeDynamicConfig(**options))
    quantized = quantizer.quantize(component.program, dict(batch), exported.export_format)
    if not any(node.op_type in _QUANTIZED for graph in quantized.graphs() for node in graph):
        raise InputError("int8=True has no effect on a graph without products with weight matrices: leave it out.")
    component.program = quantized
