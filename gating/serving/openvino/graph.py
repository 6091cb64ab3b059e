"""Models with one forward pass in OpenVINO: encoders, vision and audio models, and others without a cache."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.serving.graphs.batches import batch_to_trace
from gating.serving.graphs.check import Axes, named_outputs

__all__ = ["CompiledGraph", "convert_graph"]


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


class CompiledGraph:
    """A compiled model that takes and returns tensors.

    Attributes:
        axes: Shape of each input.
    """

    def __init__(self, compiled: Any) -> None:
        """Args: ``compiled`` is a model that OpenVINO has compiled for a device."""
        self.compiled = compiled
        self.axes: Axes = {
            port.any_name: tuple("dynamic" if size.is_dynamic else size.get_length() for size in port.partial_shape)
            for port in compiled.inputs
        }

    def __call__(self, **batch: Tensor) -> list[Tensor]:
        """Return the outputs for a batch, in the order of the model."""
        outputs = self.compiled({name: tensor.numpy() for name, tensor in batch.items()})
        return [torch.from_numpy(output.copy()) for output in outputs.values()]
