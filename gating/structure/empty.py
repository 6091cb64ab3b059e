"""Attention modules without any head.

Linear layers of width zero would not do: a cache that receives keys without elements reports length 0, so that
generation fails silently, and ONNX runtimes reject the reshapes. An emptied module gets a ``forward`` of its own with
bias, residual, cache length and a place in ``output_attentions``.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.pytorch_utils import Conv1D

from .attention_spec import Returns
from .edits import num_inputs, num_outputs
from .subclasses import bind_arguments, past_length_of

__all__ = ["BiasOnly", "emptied", "has_no_weight", "update_cache", "with_zero_gradients"]

# Arguments with the sequence that cross-attention reads.
_SOURCES = ("encoder_hidden_states", "key_value_states", "cross_attention_states", "hidden_kv", "kv")


def has_no_weight(module: nn.Module) -> bool:
    """Return whether a layer has no weight left to adapt, since its block has lost all heads or neurons."""
    is_linear = isinstance(module, (nn.Linear, Conv1D))
    return isinstance(module, BiasOnly) or (is_linear and 0 in (num_inputs(module), num_outputs(module)))


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


def emptied(base: type[nn.Module], returns: Returns) -> dict[str, Any]:
    """Return the members of a subclass of an attention class that computes only its output bias."""
    bind = bind_arguments(base)
    names = list(inspect.signature(base.forward).parameters)[1:]
    queries_name = "hidden_states" if "hidden_states" in names else names[0]
    reads_cached_images = "cross_attention_states" in names

    def forward(self: Any, *args: object, **kwargs: object) -> Any:
        arguments = bind(args, kwargs)
        hidden_states = arguments[queries_name]
        source = next((arguments[name] for name in _SOURCES if name in arguments), None)
        layer_idx = getattr(self, "layer_idx", getattr(self, "layer_id", None))
        # By type, because the name of the argument differs between families.
        cache = next((argument for argument in arguments.values() if isinstance(argument, Cache)), None)
        if returns == "tensor":
            _update_state(self, hidden_states, cache)
            return with_zero_gradients(_project_bias(self, hidden_states), *arguments.values())
        past_length = past_length_of(cache, layer_idx) if cache is not None and returns == "t5" else 0
        if source is None and reads_cached_images:
            cache = None  # The keys are those of an earlier step.
        key_length = update_cache(self, hidden_states, source, cache)
        # An empty tensor, not None: transformers skips None when it collects the layers' probabilities.
        probabilities = hidden_states.new_zeros(hidden_states.shape[0], 0, hidden_states.shape[1], key_length)
        if returns in ("context", "longformer"):
            features = with_zero_gradients(hidden_states, *arguments.values())
            return (features, probabilities) if returns == "context" else _windowed(features, arguments)
        if returns == "contexts":
            first, second = (with_zero_gradients(value, *arguments.values()) for value in list(arguments.values())[:2])
            return (first, second, probabilities) if arguments.get("output_attentions") else (first, second)
        output = with_zero_gradients(_project_bias(self, hidden_states), *arguments.values())
        if returns == "t5":
            bias = None if source is not None else arguments.get("position_bias")
            if bias is None and source is None and self.has_relative_attention_bias:
                bias = self.compute_bias(hidden_states.shape[1], key_length, hidden_states.device, past_length)
            return with_zero_gradients(output, bias), bias, probabilities
        return _returned(self, returns, output, probabilities, hidden_states=hidden_states, arguments=arguments)

    return {"forward": forward}


def _returned(
    module: Any,
    returns: Returns,
    output: Tensor,
    probabilities: Tensor,
    *,
    hidden_states: Tensor,
    arguments: dict[str, Any],
) -> Any:
    """Return an output as the class of a module does, after the residual and the norm that are part of some classes."""
    if returns == "albert":
        output = module.LayerNorm(hidden_states + output)
    elif returns == "funnel":
        output = module.layer_norm(hidden_states + output)
    elif returns == "residual":
        output = arguments["residual"] + functional.dropout(output, module.hidden_dropout, module.training)
    elif returns == "two pairs":
        others = list(arguments.values())[1]
        second = with_zero_gradients(_project_bias(module, others, index=1), *arguments.values())
        return (output, probabilities.flatten(0, 1)), (second, probabilities.flatten(0, 1).transpose(1, 2))
    elif returns == "cache":
        return output, probabilities, arguments.get("cache")
    if returns in ("mpnet", "list", "funnel"):
        asked = (output, probabilities) if arguments.get("output_attentions") else (output,)
        return list(asked) if returns == "list" else asked
    return output, probabilities


def _windowed(features: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return the features of a module with sliding windows, with probabilities of no head if they are asked for."""
    if not arguments.get("output_attentions"):
        return (features,)
    rows, length = features.shape[:2]
    in_windows, of_global = features.new_zeros(rows, length, 0, 1), features.new_zeros(rows, 0, 1, length)
    return (features, in_windows, of_global) if arguments.get("is_global_attn") else (features, in_windows)


def with_zero_gradients(output: Tensor, *unused: object) -> Tensor:
    """Give tensors that do not affect an output a gradient of zero.

    Parameters without gradient stop training on several devices: those of the norm before an emptied block, of position
    biases, or of an encoder if all cross-attention is emptied.
    """
    for tensor in unused:
        if isinstance(tensor, Tensor) and tensor.requires_grad and tensor is not output:
            output = output + 0.0 * tensor.flatten()[:1].sum()
    return output


def _project_bias(module: nn.Module, hidden_states: Tensor, *, index: int = 0) -> Tensor:
    """Apply the output projection's bias, and the dropout after it that some classes have."""
    children = dict(module.named_children())
    # PEFT's modules_to_save are wrapped.
    stubs = [child for child in children.values() if any(isinstance(part, BiasOnly) for part in child.modules())]
    output: Tensor = stubs[index](hidden_states)
    for name in ("resid_dropout", "out_drop", "output_dropout", "proj_drop", "projection_dropout", "hidden_dropout"):
        if name in children:
            output = children[name](output)
    return output


def _update_state(module: Any, hidden_states: Tensor, cache: Cache | None) -> None:
    """Put a state into the cache of a layer with linear attention: models ask its last layer whether there is one."""
    if cache is not None:
        zeros = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1])
        cache.update_conv_state(zeros, module.layer_idx, conv_kernel_size=1)
        cache.update_recurrent_state(zeros.new_zeros(len(zeros), 1, 1, 1), module.layer_idx)


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
    placeholder = torch.zeros(
        keys_from.shape[0], 1, keys_from.shape[1], 1, dtype=keys_from.dtype, device=keys_from.device
    )
    keys: Tensor = cache.update(placeholder, placeholder, layer_idx)[0]
    return keys.shape[2]
