"""Parts of the file that travels: a compact model has those that its record names, and the mixins that it needs.

A part returns the members of a subclass of the module's class. Attention without heads has no projections. Linear
layers of width zero would not do: a cache that receives keys without elements reports length 0, so that generation
fails silently, and ONNX runtimes reject the reshapes.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import conversion_mapping

from .modeling import MIXINS, part


def mixin(cls: type) -> type:
    """Register a base class of every compact model."""
    MIXINS.append(cls)
    return cls


def original_class(cls: Any) -> Any:
    """Return the class that :func:`subclass` made a class of, or the class itself."""
    return getattr(cls, "original_class", cls)


# Arguments with the sequence that cross-attention reads.
_SOURCES = ("encoder_hidden_states", "key_value_states", "cross_attention_states", "hidden_kv", "kv")
_DROPOUTS = ("resid_dropout", "out_drop", "output_dropout", "proj_drop", "projection_dropout", "hidden_dropout")
# What a class returns: its output and probabilities, the input of a projection outside of it, or its output alone.
FORMS = ("pair", "context", "tensor")


@part
def emptied(base: type[nn.Module], form: str, projection: str) -> dict[str, Any]:
    """Return the members of a subclass of attention without heads, whose output projection has no inputs."""
    names = list(inspect.signature(base.forward).parameters)[1:]
    queries_name = "hidden_states" if "hidden_states" in names else names[0]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(names, args)), **kwargs}  # noqa: B905
        states: Tensor = arguments[queries_name]
        output: Any = states[..., :0]
        for tensor in arguments.values():
            # Parameters without gradient, as of the norm before, stop training on several devices.
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                output = output + 0.0 * tensor.flatten()[:1].sum()
        if form != "context":
            output = self.get_submodule(projection)(output)
            for name, child in self.named_children():
                output = child(output) if name in _DROPOUTS else output
        if form == "tensor":
            return output
        (source, *_) = [arguments[name] for name in _SOURCES if name in arguments] or [None]
        (cache, *_) = [argument for argument in arguments.values() if hasattr(argument, "get_seq_length")] or [None]
        # Without new images, the keys are those of an earlier step.
        cache = None if source is None and "cross_attention_states" in names else cache
        place = None if source is not None else arguments.get("cache_position")
        key_length = _update_cache(self, states if source is None else source, source is not None, cache, place)
        return output, states.new_zeros(states.shape[0], 0, states.shape[1], key_length)

    return {"forward": forward}


def _update_cache(module: Any, keys_from: Tensor, is_cross: bool, cache: Any, place: Any) -> int:
    """Update the length of the cache of an emptied module, if there is one, and return the number of keys."""
    layer_idx = getattr(module, "layer_idx", getattr(module, "layer_id", None))
    if cache is None or layer_idx is None or getattr(module, "is_kv_shared_layer", False):
        return keys_from.shape[1]
    if hasattr(cache, "is_updated"):
        if is_cross and cache.is_updated.get(layer_idx):
            return int(cache.cross_attention_cache.layers[layer_idx].keys.shape[2])
        if is_cross:
            # Whisper and others read the length of cross-attention from here.
            cache.is_updated[layer_idx] = True
        cache = cache.cross_attention_cache if is_cross else cache.self_attention_cache
    placeholder = keys_from.new_ones(keys_from.shape[0], 1, keys_from.shape[1], 1)  # Older static caches count ones.
    return int(cache.update(placeholder, placeholder, layer_idx, {"cache_position": place})[0].shape[2])


@part
def narrow_conv1d(_base: type[nn.Module]) -> dict[str, Any]:
    """Return the members of a subclass of ``Conv1D`` that may have a width of zero."""

    def forward(self: Any, features: Tensor) -> Tensor:
        return functional.linear(features, self.weight.t(), self.bias)

    return {"forward": forward}


@part
def replaced_forward(_base: type[nn.Module], forward: Callable[..., Any]) -> dict[str, Any]:
    """Return the members of a subclass with another ``forward``."""
    return {"forward": forward}


def _mask(is_kept: tuple[bool, ...], head_dim: int, _: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Set outputs of heads in the first input of a projection, ``[..., num_heads * head_dim]``, to zero."""
    head_outputs, *rest = inputs
    mask = head_outputs.new_tensor(is_kept).repeat_interleave(head_dim)
    return (head_outputs * mask, *rest)


@part
def silenced(base: type[nn.Module], is_kept: tuple[bool, ...], head_dim: int) -> dict[str, Any]:
    """Return the members of a subclass of an output projection that masks the outputs of padding heads.

    Their columns of the weight are zero and get a gradient of zero, so that training does not revive removed heads.
    """
    mask = partial(_mask, is_kept, head_dim)

    def forward(self: Any, head_outputs: Tensor) -> object:
        return base.forward(self, mask(self, (head_outputs,))[0])

    return {"forward": forward}


@part
def padded(base: type[nn.Module], is_kept: tuple[bool, ...], head_dim: int, projection: str) -> dict[str, Any]:
    """Return the members of a subclass of attention that masks the input of adapters of its output projection, too."""
    mask = partial(_mask, is_kept, head_dim)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        wraps_projection = name == projection and isinstance(value, nn.Module) and hasattr(value, "base_layer")
        if wraps_projection and mask not in value._forward_pre_hooks.values():
            value.register_forward_pre_hook(mask)
        base.__setattr__(self, name, value)

    return {"__setattr__": set_attribute}


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


@part
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


@contextmanager
def rows_in_place(model: Any) -> Iterator[None]:
    """Leave out of a model's conversions, in a ``with`` block, those that permute the rows of each head.

    On saving and loading, transformers would take the number of heads from the configuration, which is that of the
    dense model. Under the names of the model class, these weights are loaded as they are.
    """
    before = getattr(model, "_weight_conversions", None)
    # Those of a model that was not loaded are all but prefixes, as in transformers.
    known = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    found = before if before is not None else [one for one in known if type(one).__name__ != "PrefixChange"]
    kept = [conversion for conversion in found if not permutes_rows(conversion)]
    if len(kept) < len(found):
        model._weight_conversions = kept
    try:
        yield
    finally:
        model._weight_conversions = before


def permutes_rows(conversion: Any) -> bool:
    """Return whether a conversion of transformers permutes rows of heads."""
    # Operations are told by their names: versions of transformers have several, or none.
    return any("PermuteForRope" in type(operation).__name__ for operation in getattr(conversion, "operations", ()))


@mixin
class RowsInPlace:
    """Methods of a compact model whose rows stay in the order of the model when it is saved."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save a model as transformers does."""
        with rows_in_place(self):
            super().save_pretrained(*args, **kwargs)  # type: ignore[misc]


# No class of transformers has the first by itself.
_LAYER_COUNTS = ("allow_global_per_layer_attribute_access", "per_layer_config", "_heterogeneity_spec")


@mixin
class WithoutLayerCounts:
    """Methods of a compact model whose configuration has head counts of each layer."""

    def __init__(self, config: object, *args: object, **kwargs: object) -> None:
        """Build the model as the record in ``config`` says, whatever the counts of layers are."""
        config = copy.copy(config)
        for name in _LAYER_COUNTS if vars(config).get(_LAYER_COUNTS[0]) and hasattr(config, "head_gating") else ():
            vars(config).pop(name, None)
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
