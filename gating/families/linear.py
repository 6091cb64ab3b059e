"""Sizes of linear layers of any class, and paths to the layers and parameters of a block.

``nn.Linear`` keeps its weight as ``[outputs, inputs]``; GPT-2's ``Conv1D`` as ``[inputs, outputs]``.
"""

from typing import Any, Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

__all__ = ["Side", "num_inputs", "num_outputs", "parameter_names", "size_names", "weight_dim", "without_adapter"]

Side = Literal["inputs", "outputs"]


def size_names(linear: nn.Module, side: Side) -> list[str]:
    """Return the attributes of a layer with the number of its inputs or outputs, beside its weight."""
    names = ("nx", "nf") if isinstance(linear, Conv1D) else ("in_features", "out_features")
    # The outputs of a convolution of each channel for itself are the inputs.
    is_convolution = isinstance(linear, nn.Conv1d)
    changed = ("in_channels", "out_channels", "groups") if is_convolution else (names[side == "outputs"],)
    return [name for name in changed if hasattr(linear, name)]


def parameter_names(linear: nn.Module) -> tuple[str, str]:
    """Return the names of a layer's weight and bias; ``nn.MultiheadAttention`` projects its inputs itself."""
    return ("in_proj_weight", "in_proj_bias") if isinstance(linear, nn.MultiheadAttention) else ("weight", "bias")


def weight_dim(linear: nn.Module, side: Side) -> int:
    """Return the dimension of a layer's weight that belongs to its inputs or outputs."""
    return int((side == "inputs") != isinstance(linear, Conv1D))


def num_inputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's input, read from its weight."""
    return _width(without_adapter(linear), "inputs")


def num_outputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's output, read from its weight."""
    return _width(without_adapter(linear), "outputs")


def without_adapter(linear: nn.Module) -> nn.Module:
    """Return the layer that an adapter, such as LoRA's, wraps; a layer without adapter as it is."""
    inner = getattr(linear, "base_layer", None)
    return without_adapter(inner) if isinstance(inner, nn.Module) else linear


def _width(linear: Any, side: Side) -> int:
    weight = getattr(linear, parameter_names(linear)[0], None)
    if isinstance(weight, Tensor) and (weight.is_floating_point() or not hasattr(linear, "in_features")):
        return int(weight.shape[weight_dim(linear, side)])
    # A quantized layer, whose weight may be packed: the error that it cannot be edited comes later.
    return int(linear.in_features if side == "inputs" else linear.out_features)
