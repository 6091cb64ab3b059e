"""Subclasses of attention classes for modules that lost heads, and views of configurations.

Assigning a subclass to ``module.__class__`` keeps hooks and ``isinstance`` checks, by which transformers collects
attention probabilities. A subclass has the name of its base, exists once, and its modules can be copied and pickled.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = [
    "ConfigView",
    "ForwardHandle",
    "HeadMask",
    "bind_arguments",
    "original_class",
    "padded",
    "past_length_of",
    "replaced_forward",
    "shared_bias",
    "silenced",
    "sliced_inputs",
    "subclass",
]

Members = dict[str, Any]

_CLASSES: dict[tuple[object, ...], type[nn.Module]] = {}


def subclass(base: type[nn.Module], make_members: Callable[..., Members], *arguments: Any) -> type[nn.Module]:
    """Return the subclass of a class of modules, or of its original class, with the members that a function returns.

    Args:
        base: The class.
        make_members: A function at module level; called with the original class and the arguments.
        *arguments: Hashable and picklable.
    """
    base = original_class(base)
    key = (base, make_members, *arguments)
    if key not in _CLASSES:
        members = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "original_class": base,
            # Pickle would look the class up by its name and find the base.
            "__reduce_ex__": lambda self, _: (_new, (base, make_members, *arguments), self.__getstate__()),
            **make_members(base, *arguments),
        }
        _CLASSES[key] = type(base.__name__, (base,), members)
    return _CLASSES[key]


def original_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class that :func:`subclass` made a class of, or the class itself."""
    original: type[nn.Module] = getattr(cls, "original_class", cls)
    return original


def _new(base: type[nn.Module], make_members: Callable[..., Members], *arguments: Any) -> nn.Module:
    cls = subclass(base, make_members, *arguments)
    return cls.__new__(cls)


def bind_arguments(cls: type[nn.Module]) -> Callable[[tuple[object, ...], Mapping[str, object]], Members]:
    """Return a function that names the arguments of ``forward``; ``torch.compile`` does not trace ``inspect``."""
    names = list(inspect.signature(cls.forward).parameters)[1:]
    return lambda args, kwargs: {**dict(zip(names, args, strict=False)), **kwargs}


def replaced_forward(_base: type[nn.Module], forward: Any) -> Members:
    """Return the members of a subclass with another ``forward``."""
    return {"forward": forward}


class ForwardHandle:
    """The handle of a function on the outputs of heads, with another ``forward`` while any such handle is in use.

    ``nn.MultiheadAttention`` does not call its output projection, so that hooks of the projection do not fire.
    """

    def __init__(self, module: Any, forward: Callable[..., Any], handle: Any) -> None:
        """Args: ``handle`` is that of the function, removed with this one."""
        self._module, self._handle = module, handle
        module.__dict__["num_feature_hooks"] = module.__dict__.get("num_feature_hooks", 0) + 1
        module.__class__ = subclass(type(module), replaced_forward, forward)

    def remove(self) -> None:
        """Remove the function; the last one restores the class unless heads have been removed."""
        self._handle.remove()
        self._module.num_feature_hooks -= 1
        if self._module.num_feature_hooks == 0:
            del self._module.num_feature_hooks
            if not hasattr(self._module, "head_slots"):
                self._module.__class__ = original_class(type(self._module))


def sliced_inputs(base: type[nn.Module], inputs: tuple[tuple[str, int], ...]) -> Members:
    """Return the members of a subclass that takes the entries of its own heads from some arguments.

    Position biases and slopes that all layers share have an entry for each original head, along the given dimension.
    """
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
        past_length = past_length_of(cache, self.layer_idx)
        arguments["position_bias"] = _take_heads(self, full_bias, 1)
        output, own_bias, probabilities = base.forward(self, **arguments)
        if full_bias is None and not is_cross_attention and self.has_relative_attention_bias:
            full_bias = base.compute_bias(
                self, hidden_states.shape[1], own_bias.shape[-1], own_bias.device, past_length
            )
        return output, full_bias, probabilities

    return {"forward": forward, "compute_bias": compute_bias}


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


def past_length_of(cache: Any, layer_idx: int | None) -> Any:
    """Return the number of positions in a cache; a copy, because static caches count in place."""
    length = cache.get_seq_length(layer_idx) if cache is not None else 0
    return length.clone() if isinstance(length, Tensor) else length


@dataclass(frozen=True)
class HeadMask:
    """A forward pre-hook of an output projection that sets the outputs of some heads to zero.

    Attributes:
        is_kept: For each head with columns in the projection, whether its outputs stay.
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


def silenced(base: type[nn.Module], mask: HeadMask) -> Members:
    """Return the members of a subclass of an output projection that masks the outputs of padding heads.

    Their columns of the weight are zero and get a gradient of zero, so that training does not revive removed heads.
    """

    def forward(self: Any, head_outputs: Tensor) -> object:
        return base.forward(self, mask(self, (head_outputs,))[0])

    return {"forward": forward}


def padded(
    base: type[nn.Module], make_members: Callable[..., Members] | None, arguments: tuple[Any, ...], mask: HeadMask
) -> Members:
    """Return the members of a subclass of attention that masks the input of adapters of its output projection, too.

    The other members are those of ``make_members(base, *arguments)``.
    """

    def set_attribute(self: Any, name: str, value: Any) -> None:
        wraps_projection = name == mask.projection and isinstance(value, nn.Module) and hasattr(value, "base_layer")
        if wraps_projection and mask not in value._forward_pre_hooks.values():
            value.register_forward_pre_hook(mask)
        base.__setattr__(self, name, value)

    members = make_members(base, *arguments) if make_members is not None else {}
    return {**members, "__setattr__": set_attribute}


class ConfigView:
    """A live view of a configuration with other values, for classes that read head counts or kernels from it."""

    def __init__(self, config: object, values: dict[str, object]) -> None:
        """Args: ``values`` are the attributes that differ; those of a ``config`` that is a view are dropped."""
        self._viewed: object = config._viewed if isinstance(config, ConfigView) else config
        # Plain attributes: torch.compile does not trace a __getattribute__ of our own.
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the configuration."""
        if name.startswith("__") or name == "_viewed":
            # While it is copied or unpickled, there is no configuration yet.
            raise AttributeError(name)
        return getattr(self._viewed, name)
