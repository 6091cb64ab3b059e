"""Attention without any head: zeros of width 0 for its output projection, of which the bias stays.

Its projections are gone. Linear layers of width zero in their places would not do: a cache that receives keys without
elements reports length 0, so that generation fails silently, and ONNX runtimes reject the reshapes.
"""

import inspect
from typing import Any

from torch import Tensor, nn

from .classes import part

__all__ = ["FORMS", "emptied"]

# What a class returns: its output and probabilities, the input of a projection outside of it, or its output alone.
FORMS = ("pair", "context", "tensor")
# Arguments with the sequence that cross-attention reads.
_SOURCES = ("encoder_hidden_states", "key_value_states", "cross_attention_states", "hidden_kv", "kv")
_DROPOUTS = ("resid_dropout", "out_drop", "output_dropout", "proj_drop", "projection_dropout", "hidden_dropout")


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
