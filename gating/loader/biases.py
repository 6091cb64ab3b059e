"""Attention whose layers share position biases or slopes, which have an entry for each head of the original model."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .classes import part

__all__ = ["shared_bias", "sliced_inputs"]


@part
def sliced_inputs(base: type[nn.Module], inputs: tuple[tuple[str, int], ...], num_heads: int) -> dict[str, Any]:
    """Return the members of a subclass that takes the entries of its own heads from some arguments and dimensions.

    The arguments have entries for the ``num_heads`` heads of the original model.
    """
    bind = _bind_arguments(base)

    def forward(self: Any, *args: object, **kwargs: object) -> object:
        arguments = bind(args, kwargs)
        for name, dim in inputs:
            if name in arguments:
                arguments[name] = _take_heads(self, arguments[name], dim, num_heads)
        return base.forward(self, **arguments)

    return {"forward": forward}


@part
def shared_bias(base: Any, num_heads: int) -> dict[str, Any]:
    """Return the members of a subclass of T5's attention.

    The first layer computes a position bias for all ``num_heads`` original heads and passes it to the others in its
    return value; each layer takes the entries of its own heads. The zeros that cross-attention uses as bias are not
    passed on, because layers differ in their number of heads.
    """
    bind = _bind_arguments(base)

    def compute_bias(self: Any, *args: object, **kwargs: object) -> Tensor:
        # Exporters would see an assignment.
        self.__dict__["full_bias"] = bias = base.compute_bias(self, *args, **kwargs)
        return cast("Tensor", _take_heads(self, bias, 1, num_heads))

    def forward(self: Any, *args: object, **kwargs: object) -> tuple[Any, ...]:
        arguments = bind(args, kwargs)
        is_cross_attention = arguments.get("key_value_states") is not None
        full_bias = None if is_cross_attention else arguments.get("position_bias")
        arguments["position_bias"] = _take_heads(self, full_bias, 1, num_heads)
        # Below transformers 5.20, probabilities follow only if they are asked for.
        output, own_bias, *probabilities = base.forward(self, **arguments)
        computed = self.__dict__.pop("full_bias", None)
        if computed is not None and not is_cross_attention:
            _, _, *lengths = own_bias.shape
            full_bias = computed[:, :, -lengths[0] :, : lengths[1]]
            # Below transformers 5.20, the first layer adds the mask, which has no heads.
            added = own_bias[:, :1] - _take_heads(self, full_bias, 1, num_heads)[:, :1]
            full_bias = full_bias + added
        return output, full_bias, *probabilities

    return {"forward": forward, "compute_bias": compute_bias}


def _bind_arguments(cls: type[nn.Module]) -> Callable[[tuple[object, ...], Mapping[str, object]], dict[str, Any]]:
    """Return a function that names the arguments of ``forward``; ``torch.compile`` does not trace ``inspect``."""
    names = list(inspect.signature(cls.forward).parameters)[1:]
    return lambda args, kwargs: {**dict(zip(names, args)), **kwargs}  # noqa: B905


def _take_heads(module: Any, value: Any, dim: int, num_heads: int) -> Any:
    """Index a tensor with an entry for each original head; tensors that broadcast over heads stay.

    The first dimension may be that of batch and heads together.
    """
    if not isinstance(value, Tensor) or value.dim() <= dim:
        return value
    if dim == 0 and value.shape[0] % num_heads == 0:
        return value.unflatten(0, (-1, num_heads)).index_select(1, module.head_index).flatten(0, 1)
    return torch.index_select(value, dim, module.head_index) if value.shape[dim] == num_heads else value
