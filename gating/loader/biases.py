"""Attention whose layers share position biases or slopes, which have an entry for each head of the original model."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from .modules import EmptiedCall, Members, bind_arguments, with_zero_gradients

__all__ = ["PARTS", "shared_bias", "sliced_inputs"]


def sliced_inputs(base: type[nn.Module], inputs: tuple[tuple[str, int], ...]) -> Members:
    """Return the members of a subclass that takes the entries of its own heads from some arguments and dimensions."""
    bind = bind_arguments(base)

    def forward(self: Any, *args: object, **kwargs: object) -> object:
        arguments = bind(args, kwargs)
        for name, dim in inputs:
            arguments[name] = _take_heads(self, arguments.get(name), dim)
        return base.forward(self, **arguments)

    return {"forward": forward}


def shared_bias(base: Any) -> Members:
    """Return the members of a subclass of T5's attention.

    The first layer computes a position bias for all original heads and passes it to the others in its return value;
    each layer takes the entries of its own heads. The zeros that cross-attention uses as bias are not passed on,
    because layers differ in their number of heads.
    """
    bind = bind_arguments(base)

    def compute_bias(self: Any, *args: object, **kwargs: object) -> Tensor:
        bias: Tensor = base.compute_bias(self, *args, **kwargs)
        return cast("Tensor", _take_heads(self, bias, 1))

    def forward(self: Any, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None, Tensor | None]:
        arguments = bind(args, kwargs)
        hidden_states, cache = arguments["hidden_states"], arguments.get("cache")
        is_cross_attention = arguments.get("key_value_states") is not None
        full_bias = None if is_cross_attention else arguments.get("position_bias")
        past_length = _past_length(cache, self.layer_idx)
        arguments["position_bias"] = _take_heads(self, full_bias, 1)
        output, own_bias, probabilities = base.forward(self, **arguments)
        if full_bias is None and not is_cross_attention and self.has_relative_attention_bias:
            full_bias = base.compute_bias(
                self, hidden_states.shape[1], own_bias.shape[-1], own_bias.device, past_length
            )
        return output, full_bias, probabilities

    return {"forward": forward, "compute_bias": compute_bias}


def _emptied_t5(call: EmptiedCall) -> tuple[Tensor, Tensor | None, Tensor]:
    """Answer as T5's attention without heads, which still passes the position bias on, or computes it first."""
    module, states = call.module, call.hidden_states
    past_length = _past_length(call.cache, getattr(module, "layer_idx", None))
    probabilities = call.probabilities()
    bias = None if call.source is not None else call.arguments.get("position_bias")
    if bias is None and call.source is None and module.has_relative_attention_bias:
        bias = module.compute_bias(states.shape[1], probabilities.shape[-1], states.device, past_length)
    return with_zero_gradients(call.output(), bias), bias, probabilities


def _take_heads(module: Any, value: Any, dim: int) -> Any:
    """Index a tensor with an entry for each original head; tensors that broadcast over heads stay.

    The first dimension may be that of batch and heads together.
    """
    if not isinstance(value, Tensor) or value.dim() <= dim:
        return value
    num_heads: int = module.num_heads_before
    if dim == 0 and value.shape[0] % num_heads == 0:
        return value.unflatten(0, (-1, num_heads)).index_select(1, module.head_index).flatten(0, 1)
    return torch.index_select(value, dim, module.head_index) if value.shape[dim] == num_heads else value


def _past_length(cache: Any, layer_idx: int | None) -> Any:
    """Return the number of positions in a cache; a copy, because static caches count in place."""
    length = cache.get_seq_length(layer_idx) if cache is not None else 0
    return length.clone() if isinstance(length, Tensor) else length


PARTS = {
    "shared_bias": shared_bias,
    "sliced_inputs": sliced_inputs,
    "emptied t5": _emptied_t5,
    # The table of the first layer serves all layers.
    "stays t5": ("relative_attention_bias",),
}
