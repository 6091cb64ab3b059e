"""Classes that take what is theirs of inputs made for other heads, too.

Position biases and slopes that all layers share are made outside of the attention modules, one entry for each original
head; a module that lost heads takes the entries of the others at each call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .subclasses import bind_arguments

__all__ = ["HeadMask", "padded", "replaced_forward", "shared_bias", "silenced", "sliced_inputs"]


def sliced_inputs(base: type[nn.Module], inputs: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    """Make the members of a subclass that indexes some arguments by the module's ``head_index``."""
    bind = bind_arguments(base)

    def forward(self: Any, *args: object, **kwargs: object) -> object:
        arguments = bind(args, kwargs)
        for name, dim in inputs:
            arguments[name] = _take_heads(self, arguments.get(name), dim)
        return base.forward(self, **arguments)

    return {"forward": forward}


def shared_bias(base: Any) -> dict[str, Any]:
    """Make the members of a subclass of T5's attention.

    The first layer computes a position bias from its table and hands it on to the others through its return value. It
    stays at full width there; each layer takes its heads of it. Cross-attention has a bias of zeros, which is not
    handed on: layers differ in its width.
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
        past_length = past_length_of(cache, self.layer_idx)
        arguments["position_bias"] = _take_heads(self, full_bias, 1)
        output, own_bias, probabilities = base.forward(self, **arguments)
        if full_bias is None and not is_cross_attention and self.has_relative_attention_bias:
            full_bias = base.compute_bias(
                self, hidden_states.shape[1], own_bias.shape[-1], own_bias.device, past_length
            )
        return output, full_bias, probabilities

    return {"forward": forward, "compute_bias": compute_bias}


def past_length_of(cache: Any, layer_idx: int | None) -> Any:
    """Return how many positions a cache holds; a copy, since static caches count in place."""
    length = cache.get_seq_length(layer_idx) if cache is not None else 0
    return length.clone() if isinstance(length, Tensor) else length


def replaced_forward(_base: type[nn.Module], forward: Any) -> dict[str, Any]:
    """Make the members of a subclass with another ``forward``."""
    return {"forward": forward}


def silenced(base: type[nn.Module], mask: "HeadMask") -> dict[str, Any]:
    """Make the members of a subclass of an output projection that multiplies the outputs of padding heads by zero.

    Their columns of the weight are zero and get a gradient of zero, so that no training brings removed heads back.
    """

    def forward(self: Any, head_outputs: Tensor) -> object:
        return base.forward(self, mask(self, (head_outputs,))[0])

    return {"forward": forward}


def padded(
    base: type[nn.Module],
    make_members: Callable[..., dict[str, Any]] | None,
    arguments: tuple[Any, ...],
    mask: "HeadMask",
) -> dict[str, Any]:
    """Make the members of a subclass of attention that keeps adapters of its output projection from padding heads.

    An adapter, such as LoRA's, is put around the projection and reads what that gets.

    Args:
        base: The attention class.
        make_members: Makes the members that the subclass has besides; None without.
        arguments: Its other arguments.
        mask: Multiplies the outputs of padding heads by zero.
    """

    def set_attribute(self: Any, name: str, value: Any) -> None:
        wraps_projection = name == mask.projection and isinstance(value, nn.Module) and hasattr(value, "base_layer")
        if wraps_projection and mask not in value._forward_pre_hooks.values():
            value.register_forward_pre_hook(mask)
        base.__setattr__(self, name, value)

    members = make_members(base, *arguments) if make_members is not None else {}
    return {**members, "__setattr__": set_attribute}


@dataclass(frozen=True)
class HeadMask:
    """A pre-hook of an output projection that multiplies the outputs of some heads by zero.

    Attributes:
        is_kept: For each head that the projection has columns for, whether its outputs stay.
        head_dim: Width of one head.
        projection: Path of the projection.
    """

    is_kept: tuple[bool, ...]
    head_dim: int
    projection: str

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Mask the first input, ``[..., num_heads * head_dim]``."""
        head_outputs, *rest = inputs
        mask = head_outputs.new_tensor(self.is_kept).repeat_interleave(self.head_dim)
        return (head_outputs * mask, *rest)


def _take_heads(module: Any, value: Any, dim: int) -> Any:
    """Index a tensor that has an entry for each original head; others, which broadcast over heads, stay."""
    if isinstance(value, Tensor) and value.dim() > dim and value.shape[dim] == module.num_heads_before:
        return torch.index_select(value, dim, module.head_index)
    return value
