"""Quantization of an ONNX graph: matrix products with 8-bit integers, through ONNX Runtime."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gating.errors import InputError
from gating.serving.graphs.exporters import of_transformers

__all__ = ["quantize"]

_OPERATIONS = ("MatMul", "Gemm")
_QUANTIZED = ("MatMulInteger", "DynamicQuantizeMatMul")


def quantize(exported: Any, batch: Mapping[str, Tensor]) -> None:
    """Quantize the weights of matrix products in an exported ONNX model, in place; activations follow at run time.

    Products of two activations, as in attention, stay products of floats.

    Raises:
        ValueError: No matrix product has a constant weight.
    """
    exporters = of_transformers()
    config = exporters.OnnxRuntimeDynamicConfig(
        op_types_to_quantize=list(_OPERATIONS), extra_options={"MatMulConstBOnly": True}
    )
    (component,) = exported.components.values()
    # ONNX Runtime would ask for the optimizations that the exporter has applied.
    component.program.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    quantizer = exporters.OnnxRuntimeQuantizer(config)
    quantized = quantizer.quantize(component.program, dict(batch), exported.export_format)
    if not any(node.op_type in _QUANTIZED for graph in quantized.graphs() for node in graph):
        raise InputError("int8=True has no effect on a graph without products with weight matrices: leave it out.")
    component.program = quantized
