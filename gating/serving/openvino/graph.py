"""Models with one forward pass in OpenVINO: encoders, vision and audio models, and others without a cache."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.serving.graphs.batches import batch_to_trace
from gating.serving.graphs.check import Axes, ExportCheck, check_exported, named_outputs

__all__ = ["check_graph", "convert_graph", "rounding_of_graph"]


class _Pass(nn.Module):
    """A forward pass with tensors in and out."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)
        accepted = inspect.signature(model.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in accepted else {}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(**dict(zip(self.names, tensors, strict=True)), **self.options)
        return tuple(named_outputs(outputs).values())


def convert_graph(openvino: Any, model: PreTrainedModel, names: Sequence[str], processor: object) -> Any:
    """Return a model in float32 on the CPU as an OpenVINO model with batches and lengths of any size."""
    batch = batch_to_trace(model, names, processor)
    step = _Pass(model, names)
    with torch.inference_mode():
        outputs = named_outputs(model(**batch, **step.options))
    converted = openvino.convert_model(step, example_input=tuple(batch[name] for name in names))
    for port, name in zip(converted.inputs, names, strict=True):
        # Texts and sounds have a length; images have one size.
        sizes = [-1, -1] if batch[name].dim() == 2 else [-1, *batch[name].shape[1:]]
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape(sizes))
    for port, name in zip(converted.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    converted.validate_nodes_and_infer_types()
    return converted


class _Compiled:
    """A compiled model that takes and returns tensors."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def __call__(self, **batch: Tensor) -> list[Tensor]:
        outputs = self.compiled({name: tensor.numpy() for name, tensor in batch.items()})
        return [torch.from_numpy(output.copy()) for output in outputs.values()]


def _axes(compiled: Any) -> Axes:
    return {
        port.any_name: tuple("dynamic" if size.is_dynamic else size.get_length() for size in port.partial_shape)
        for port in compiled.inputs
    }


def check_graph(compiled: Any, model: PreTrainedModel, processor: object) -> ExportCheck:
    """Compare the outputs of a compiled model with those of a model in float32 on batches of several sizes.

    Raises:
        RuntimeError: The outputs differ.
    """
    return check_exported(model, _Compiled(compiled), _axes(compiled), processor)


def rounding_of_graph(compiled: Any, model: PreTrainedModel, names: Sequence[str], processor: object) -> float:
    """Return the largest relative difference of a compiled model with rounded weights, on one batch."""
    batch = batch_to_trace(model, names, processor)
    return max_relative_difference(forward_outputs(model, batch), _Compiled(compiled)(**batch))
