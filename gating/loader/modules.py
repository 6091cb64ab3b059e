"""Classes of modules that lost heads.

Assigning a subclass to ``module.__class__`` keeps hooks and ``isinstance`` checks, by which transformers collects
attention probabilities. A subclass has the name of its base, exists once, and its modules can be copied and pickled.

Without any head, linear layers of width zero would not do: a cache that receives keys without elements reports length
0, so that generation fails silently, and ONNX runtimes reject the reshapes.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from .changes import num_outputs

__all__ = ["BiasOnly", "EmptiedCall", "emptied", "original_class", "replaced_forward", "subclass", "update_cache"]

Members = dict[str, Any]

_CLASSES: dict[tuple[object, ...], type[nn.Module]] = {}
# Arguments with the sequence that cross-attention reads.
_SOURCES = ("encoder_hidden_states", "key_value_states", "cross_attention_states", "hidden_kv", "kv")
# Most classes return one of these.
COMMON_FORMS = ("pair", "context", "tensor")
_DROPOUTS = ("resid_dropout", "out_drop", "output_dropout", "proj_drop", "projection_dropout", "hidden_dropout")


def subclass(base: type[nn.Module], make_members: Callable[..., Members], *arguments: Any) -> type[nn.Module]:
    """Return the subclass of a class of modules, or of its original class, with the members that a function returns.

    The function, at module level, is called with the original class and the arguments, hashable and picklable.
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


class BiasOnly(nn.Module):
    """The bias of an output projection without any input.

    The weight is a buffer without columns. A checkpoint without it could be loaded as a dense model, with random
    projections; the size mismatch prevents that.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """Args: ``weight`` of shape ``[out_features, 0]`` and ``bias`` of shape ``[out_features]`` or None."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias = bias

    @classmethod
    def replacing(cls, linear: nn.Module) -> "BiasOnly":
        """Return the stub for a linear layer, with the same bias parameter."""
        weight, bias = linear.weight, linear.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, nn.Parameter)
        return cls(weight.detach().new_empty(num_outputs(linear), 0), bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the bias at every position, ``[..., out_features]``, for an input of any width."""
        out_features = self.weight.shape[0]
        result = hidden_states.new_zeros(*hidden_states.shape[:-1], out_features)
        return with_zero_gradients(result if self.bias is None else result + self.bias, hidden_states)

    def extra_repr(self) -> str:
        """Return the shape as ``nn.Linear`` does, and a remedy for PEFT's error about its targets."""
        shape = f"in_features=0, out_features={self.weight.shape[0]}, bias={self.bias is not None}"
        return f"{shape}; all heads of this layer are removed: name it in PEFT's exclude_modules"


@dataclass
class EmptiedCall:
    """One call of an attention module without heads."""

    module: Any
    hidden_states: Tensor
    arguments: Members  # All arguments by name.
    source: Tensor | None  # The sequence that cross-attention reads.
    cache: Cache | None

    def output(self, hidden_states: Tensor | None = None, *, index: int = 0) -> Tensor:
        """Return an output projection's bias at each position, after the dropout that some classes have."""
        children = dict(self.module.named_children())
        # PEFT's modules_to_save are wrapped.
        stubs = [child for child in children.values() if any(isinstance(part, BiasOnly) for part in child.modules())]
        output: Tensor = stubs[index](self.hidden_states if hidden_states is None else hidden_states)
        for name in _DROPOUTS:
            if name in children:
                output = children[name](output)
        return with_zero_gradients(output, *self.arguments.values())

    def features(self, hidden_states: Tensor | None = None) -> Tensor:
        """Return features for an output projection outside of the module, which reads nothing of them."""
        features = self.hidden_states if hidden_states is None else hidden_states
        return with_zero_gradients(features, *self.arguments.values())

    def probabilities(self) -> Tensor:
        """Update the length of the cache, and return the probabilities, ``[batch, 0, queries, keys]``.

        An empty tensor, not None: transformers skips None when it collects the layers' probabilities.
        """
        states = self.hidden_states
        key_length = update_cache(self.module, states, self.source, self.cache)
        return states.new_zeros(states.shape[0], 0, states.shape[1], key_length)


def emptied(base: type[nn.Module], returns: str, answer: Callable[[EmptiedCall], Any] | None) -> Members:
    """Return the members of a subclass of an attention class without heads; a part answers for forms of few classes."""
    bind = bind_arguments(base)
    names = list(inspect.signature(base.forward).parameters)[1:]
    queries_name = "hidden_states" if "hidden_states" in names else names[0]
    reads_cached_images = "cross_attention_states" in names

    def forward(self: Any, *args: object, **kwargs: object) -> Any:
        arguments = bind(args, kwargs)
        source = next((arguments[name] for name in _SOURCES if name in arguments), None)
        # By type, because the name of the argument differs between families.
        cache = next((argument for argument in arguments.values() if isinstance(argument, Cache)), None)
        if source is None and reads_cached_images:
            cache = None  # The keys are those of an earlier step.
        call = EmptiedCall(self, arguments[queries_name], arguments, source, cache)
        if answer is not None:
            return answer(call)
        output = call.features() if returns == "context" else call.output()
        return output if returns == "tensor" else (output, call.probabilities())

    return {"forward": forward}


def update_cache(module: Any, hidden_states: Tensor, source: Tensor | None, cache: Cache | None) -> int:
    """Update the length of the cache of an emptied module, if there is one, and return the number of keys."""
    keys_from = hidden_states if source is None else source
    layer_idx = getattr(module, "layer_idx", getattr(module, "layer_id", None))
    if cache is None or layer_idx is None or getattr(module, "is_kv_shared_layer", False):
        return keys_from.shape[1]
    if isinstance(cache, EncoderDecoderCache):
        if source is None:
            cache = cache.self_attention_cache
        elif cache.is_updated.get(layer_idx):
            updated: Tensor = cache.cross_attention_cache.layers[layer_idx].keys
            return updated.shape[2]
        else:
            # Whisper and others read the length of cross-attention from here.
            cache.is_updated[layer_idx] = True
            cache = cache.cross_attention_cache
    placeholder = keys_from.new_zeros(keys_from.shape[0], 1, keys_from.shape[1], 1)
    keys: Tensor = cache.update(placeholder, placeholder, layer_idx)[0]
    return keys.shape[2]


def with_zero_gradients(output: Tensor, *unused: object) -> Tensor:
    """Give tensors that do not affect an output a gradient of zero.

    Parameters without gradient stop training on several devices: those of the norm before an emptied block, of position
    biases, or of an encoder if all cross-attention is emptied.
    """
    for tensor in unused:
        if isinstance(tensor, Tensor) and tensor.requires_grad and tensor is not output:
            output = output + 0.0 * tensor.flatten()[:1].sum()
    return output
