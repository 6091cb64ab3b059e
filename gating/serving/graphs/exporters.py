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

from gating.proof.probe import make_probe

__all__ = ["GraphFormat", "decoding_step", "export_graph", "pool", "quantize", "quiet_exporters", "save_graph"]

GraphFormat = Literal["onnx", "openvino"]
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
    options = {"op_types_to_quantize": ["MatMul", "Gemm"], "extra_options": {"MatMulConstBOnly": True}}
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
