"""Attention layers that are left with no head.

Linear layers of width zero are not enough: a cache that receives keys without elements reports length 0, so that
generation goes wrong silently, and ONNX runtimes reject the reshapes. A block without heads therefore gets a
forward of its own, which keeps what the rest of the model relies on: bias, residual, cache length and the position
of the layer in ``output_attentions``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from .edits import num_outputs
from .families import Returns
from .subclasses import bind_arguments, past_length_of

__all__ = ["BiasOnly", "emptied"]


class BiasOnly(nn.Module):
    """What is left of an output projection whose every input was removed: its bias.

    The weight stays as a buffer with no column. Without it, a checkpoint of this model would merely lack some
    keys, and loading it as a dense model would succeed with random projections; with it, that stops on a size
    mismatch.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """Args: ``weight`` of shape ``[out_features, 0]`` and ``bias`` of shape ``[out_features]`` or None."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias = bias

    @classmethod
    def replacing(cls, linear: nn.Module) -> "BiasOnly":
        """Return the stub for a linear layer; the bias is the same parameter."""
        weight, bias = linear.weight, linear.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, nn.Parameter)
        return cls(weight.detach().new_empty(num_outputs(linear), 0), bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the bias for every position, ``[..., out_features]``, whatever the input's width."""
        out_features = self.weight.shape[0]
        result = hidden_states.new_zeros(*hidden_states.shape[:-1], out_features)
        return _keep_graph(result if self.bias is None else result + self.bias, hidden_states)

    def extra_repr(self) -> str:
        """Show the shape like a linear layer does, and what PEFT's message on a target that is none lacks."""
        shape = f"in_features=0, out_features={self.weight.shape[0]}, bias={self.bias is not None}"
        return f"{shape}; all heads of this layer are removed: name it in PEFT's exclude_modules"


def emptied(base: type[nn.Module], returns: Returns) -> dict[str, Any]:
    """Make the members of the subclass of an attention class that computes nothing but its output bias."""
    bind = bind_arguments(base)

    def forward(self: Any, *args: object, **kwargs: object) -> tuple[Tensor | None, ...]:
        arguments = bind(args, kwargs)
        hidden_states = arguments["hidden_states"]
        source = arguments.get("encoder_hidden_states", arguments.get("key_value_states"))
        # By type, not by name: the argument is called differently from family to family.
        cache = next((argument for argument in arguments.values() if isinstance(argument, Cache)), None)
        past_length = past_length_of(cache, self.layer_idx) if cache is not None else 0
        key_length = _remember_length(self, hidden_states, source, cache)
        # An empty tensor, not None: transformers skips None when it collects the layers' probabilities.
        probabilities = hidden_states.new_zeros(hidden_states.shape[0], 0, hidden_states.shape[1], key_length)
        if returns == "context":
            return _keep_graph(hidden_states, *arguments.values()), probabilities
        output = _keep_graph(_output_of_nothing(self, hidden_states), *arguments.values())
        if returns == "mpnet":
            return (output, probabilities) if arguments.get("output_attentions") else (output,)
        if returns == "albert":
            return self.LayerNorm(hidden_states + output), probabilities
        if returns == "t5":
            bias = None if source is not None else arguments.get("position_bias")
            if bias is None and source is None and self.has_relative_attention_bias:
                bias = self.compute_bias(hidden_states.shape[1], key_length, hidden_states.device, past_length)
            return _keep_graph(output, bias), bias, probabilities
        return output, probabilities

    return {"forward": forward}


def _keep_graph(output: Tensor, *unused: object) -> Tensor:
    """Give tensors that an output does not depend on a gradient of zero.

    Parameters without any, such as those of the norm before an emptied block, of position biases or of an encoder whose
    every cross-attention is empty, stop training on several devices.
    """
    for tensor in unused:
        if isinstance(tensor, Tensor) and tensor.requires_grad and tensor is not output:
            output = output + 0.0 * tensor.flatten()[:1].sum()
    return output


def _output_of_nothing(module: nn.Module, hidden_states: Tensor) -> Tensor:
    """Apply the output projection's bias, and the dropout that some classes put behind it."""
    children = dict(module.named_children())
    # PEFT's modules_to_save are wrapped.
    stub = next(child for child in children.values() if any(isinstance(part, BiasOnly) for part in child.modules()))
    output: Tensor = stub(hidden_states)
    for name in ("resid_dropout", "out_drop", "output_dropout"):
        if name in children:
            output = children[name](output)
    return output


def _remember_length(module: Any, hidden_states: Tensor, source: Tensor | None, cache: Cache | None) -> int:
    """Tell the cache, if there is one, how many positions went by; return the number of keys."""
    keys_from = hidden_states if source is None else source
    layer_idx = getattr(module, "layer_idx", None)
    if cache is None or layer_idx is None:
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
