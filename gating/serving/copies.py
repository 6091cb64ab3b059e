"""Copies of models for exporters: in float32 on the CPU, with operations that runtimes have."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.loader.changes import num_inputs
from gating.loader.modules import BiasOnly
from gating.serving.contexts import CHANGING

__all__ = ["as_converted", "copy_in_float32", "fix_rotations"]


def copy_in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model's modules on the CPU without caching; it shares tensors that are in float32 there."""
    shared: dict[int, Any] = {}
    if model.device.type == "cpu" and all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied: Any = copy.deepcopy(model, dict(shared))
    if not shared:
        copied = copied.float().cpu()
    copied.config.use_cache = False
    return copied  # type: ignore[no-any-return]


def as_converted(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model in float32 whose operations runtimes have.

    Products with a layer without inputs, as in a block that has lost all neurons, are not zero in OpenVINO, nor in ONNX
    Runtime with 8-bit integers: only the bias stays of such a layer.
    """
    copied: Any = copy_in_float32(model)
    if getattr(copied.config, "_experts_implementation", None) is not None:
        copied.config._experts_implementation = "batched_mm"  # The others sort tokens by expert.
    fix_rotations(copied)
    for name, module in list(copied.named_modules()):
        if isinstance(module, (nn.Linear, Conv1D)) and num_inputs(module) == 0:
            copied.set_submodule(name, BiasOnly.replacing(module))
    return copied  # type: ignore[no-any-return]


def fix_rotations(model: PreTrainedModel) -> None:
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
