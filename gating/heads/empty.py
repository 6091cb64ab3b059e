"""Attention layers that are left with no head.

Linear layers of width zero are not enough: a cache that receives keys without elements reports length 0, so that
generation goes wrong silently, and ONNX runtimes reject the reshapes. A block without heads therefore gets a
forward of its own, which keeps what the rest of the model relies on: bias, residual, cache length and the position
of the layer in ``output_attentions``.
"""

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from .spec import Returns

__all__ = ["BiasOnly", "emptied_class"]


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
        return cls(weight.detach()[:, :0].clone(), bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the bias for every position, ``[..., out_features]``, whatever the input's width."""
        out_features = self.weight.shape[0]
        result = hidden_states.new_zeros(*hidden_states.shape[:-1], out_features)
        return result if self.bias is None else result + self.bias

    def extra_repr(self) -> str:
        """Show the shape like a linear layer does."""
        return f"in_features=0, out_features={self.weight.shape[0]}, bias={self.bias is not None}"


_EMPTIED_CLASSES: dict[type, type[nn.Module]] = {}


def emptied_class(attention_class: type[nn.Module], returns: Returns) -> type[nn.Module]:
    """Return the subclass of an attention class that computes nothing but its output bias.

    It is a subclass so that hooks, names and ``isinstance`` checks (transformers collects attention
    probabilities by class) go on working.
    """

    def forward(
        self: nn.Module, hidden_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        key_length = _remember_length(self, hidden_states, (*args, *kwargs.values()), kwargs)
        # An empty tensor, not None: transformers skips None when it collects the layers' probabilities.
        probabilities = hidden_states.new_zeros(hidden_states.shape[0], 0, hidden_states.shape[1], key_length)
        output = hidden_states if returns == "context" else _output_projection(self)(hidden_states)
        return output, probabilities

    if attention_class not in _EMPTIED_CLASSES:
        members = {"forward": forward, "__module__": attention_class.__module__}
        _EMPTIED_CLASSES[attention_class] = type(attention_class.__name__, (attention_class,), members)
    return _EMPTIED_CLASSES[attention_class]


def _output_projection(module: nn.Module) -> BiasOnly:
    return next(child for child in module.children() if isinstance(child, BiasOnly))


def _remember_length(
    module: nn.Module, hidden_states: Tensor, arguments: tuple[object, ...], kwargs: dict[str, object]
) -> int:
    """Tell the cache, if there is one, how many positions went by; return the number of keys."""
    source = kwargs.get("encoder_hidden_states", kwargs.get("key_value_states"))
    keys_from = source if isinstance(source, Tensor) else hidden_states
    # By type, not by name: the argument is called differently from family to family.
    cache = next((argument for argument in arguments if isinstance(argument, Cache)), None)
    layer_idx = getattr(module, "layer_idx", None)
    if cache is None or layer_idx is None:
        return keys_from.shape[1]
    if isinstance(cache, EncoderDecoderCache):
        if isinstance(source, Tensor):
            cache.is_updated[layer_idx] = True
            cache = cache.cross_attention_cache
        else:
            cache = cache.self_attention_cache
    placeholder = torch.zeros(
        keys_from.shape[0], 1, keys_from.shape[1], 1, dtype=keys_from.dtype, device=keys_from.device
    )
    keys, _ = cache.update(placeholder, placeholder, layer_idx)
    return keys.shape[2]
