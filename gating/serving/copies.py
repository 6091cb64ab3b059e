"""Copies of models for exporters: in float32 on the CPU, with operations that runtimes have."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.families.layouts import num_inputs, num_outputs
from gating.serving.contexts import CHANGING

__all__ = ["as_converted", "copy_in_float32"]


def copy_in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model's modules on the CPU without caching; it shares tensors that are in float32 there."""
    tensors = [*model.parameters(), *model.buffers()]
    shared = {id(one): one for one in tensors if one.device.type == "cpu" and one.dtype == torch.float32}
    copied: Any = copy.deepcopy(model, shared).float().cpu()
    for module in copied.modules():  # A decoder beside an encoder has settings of its own.
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False
    return copied  # type: ignore[no-any-return]


def as_converted(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model in float32 whose operations runtimes have.

    Products with a layer without inputs, as in a block that has lost all neurons, are not zero in OpenVINO, nor in ONNX
    Runtime with 8-bit integers: only the bias stays of such a layer.
    """
    copied: Any = copy_in_float32(model)
    if getattr(copied.config, "_experts_implementation", None) is not None:
        copied.config._experts_implementation = "batched_mm"  # The others sort tokens by expert.
    _fix_rotations(copied)
    for name, module in list(copied.named_modules()):
        if isinstance(module, (nn.Linear, Conv1D)) and num_inputs(module) == 0:
            copied.set_submodule(name, BiasOnly(module))
    return copied  # type: ignore[no-any-return]


class BiasOnly(nn.Module):
    """The bias of a linear layer without any input."""

    weight: Tensor

    def __init__(self, linear: Any) -> None:
        """Args: ``linear`` has a weight without inputs, and a bias of shape ``[out_features]`` or None."""
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().new_empty(num_outputs(linear), 0))
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the bias at every position, ``[..., out_features]``, for an input of any width."""
        result = hidden_states.new_zeros(*hidden_states.shape[:-1], len(self.weight))
        return result if self.bias is None else result + self.bias


def _fix_rotations(model: PreTrainedModel) -> None:
    """Keep the frequencies of rotary embeddings at those of short texts, in place: a graph cannot choose by the length.

    Texts up to :func:`gating.serving.contexts.steady_context` have these.
    """
    module: Any
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        # A table has a rope type for each kind of layers.
        prefixes = {f"{kind}_": rope for kind, rope in kinds.items()} if isinstance(kinds, dict) else {"": kinds}
        for prefix, rope in prefixes.items():
            first: Any = getattr(module, f"{prefix}original_inv_freq", None)
            if rope in CHANGING and isinstance(first, torch.Tensor):
                # The model may have read a longer text before.
                module.register_buffer(f"{prefix}inv_freq", first.clone(), persistent=False)
                module.rope_type = {**kinds, prefix[:-1]: "default"} if isinstance(kinds, dict) else "default"
                kinds = module.rope_type
