"""Changes of a model that are planned before the first of them is made, and the sizes of linear layers.

``nn.Linear`` keeps its weight as ``[outputs, inputs]``; GPT-2's ``Conv1D`` as ``[inputs, outputs]``.
"""

from collections.abc import Iterator
from typing import Any, Final, Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

__all__ = ["ABSENT", "Change", "num_inputs", "num_outputs", "set_attribute", "shorten", "shorten_layer"]

Side = Literal["inputs", "outputs"]
# The assignment of a value to an attribute of an object.
Change = tuple[Any, str, Any]


class _Absent:
    """The value of an attribute that does not exist."""


ABSENT: Final = _Absent()


def set_attribute(owner: object, attribute: str, value: object) -> None:
    """Set an attribute, or delete it where the value is :data:`ABSENT`."""
    if not isinstance(value, _Absent):
        setattr(owner, attribute, value)
    elif hasattr(owner, attribute):
        delattr(owner, attribute)


def shorten(owner: nn.Module, name: str, size: int, dim: int) -> Change:
    """Plan to keep the first entries of a parameter: a checkpoint brings the values of those that are meant."""
    before = getattr(owner, name)
    values = before.detach().narrow(dim, 0, size).clone()
    return owner, name, nn.Parameter(values, requires_grad=before.requires_grad)


def shorten_layer(linear: nn.Module, size: int, side: Side) -> Iterator[Change]:
    """Plan to keep the first inputs or outputs of a layer."""
    weight, bias = parameter_names(linear)
    yield shorten(linear, weight, size, weight_dim(linear, side))
    yield from size_attributes(linear, size, side)
    if side == "outputs" and getattr(linear, bias) is not None:
        yield shorten(linear, bias, size, 0)


def size_attributes(linear: nn.Module, size: int, side: Side) -> Iterator[Change]:
    """Plan the update of the sizes that a layer keeps beside its weight."""
    names = ("nx", "nf") if isinstance(linear, Conv1D) else ("in_features", "out_features")
    # The outputs of a convolution of each channel for itself are the inputs.
    is_convolution = isinstance(linear, nn.Conv1d)
    changed = ("in_channels", "out_channels", "groups") if is_convolution else (names[side == "outputs"],)
    yield from ((linear, name, size) for name in changed if hasattr(linear, name))


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
