"""Width of heads and scaling of rotary embeddings in a GGUF file, which transformers passes over."""

import copy
from typing import Any

import torch
from torch import Tensor

from gating.errors import InputError
from gating.serving.gguf.tensors import llama3_factors

__all__ = ["complete_config"]

_SCALING, _FULL = "rope.scaling.", "full_attention"
_YARN_KEYS = {"type", "factor", "original_context_length", "finetuned"}
# LLaMA 3's own values; a file has only the factors that follow from them.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXTS = [2**power for power in range(10, 18)]


def complete_config(config: Any, reader: Any, *, name: str) -> None:
    """Set the width of heads and the scaling of rotary embeddings of a configuration to those of a GGUF file.

    transformers 5 reads them for few architectures, and says nothing of the others, such as LLaMA 3.

    Args:
        config: The configuration that transformers has made of the file.
        reader: The file, in a ``gguf.GGUFReader``.
        name: Name of the file in messages.

    Raises:
        InputError: The file scales rotary embeddings in a way that transformers cannot be told.
    """
    prefix = reader.fields["general.architecture"].contents() + "."
    own = {key.removeprefix(prefix): field.contents() for key, field in reader.fields.items() if key.startswith(prefix)}
    _set_width(config, own)
    every = getattr(config, "rope_parameters", None) or {}
    # Where layers with a sliding window have parameters of their own, the file scales those of the others.
    rope = every.get(_FULL, every)
    if rope and rope.get("rope_type", "default") == "default":
        factors = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name.startswith("rope_")}
        scaling = _scaling(config, rope, own, factors)
        if scaling is None:
            found = sorted({*factors, *(f"{key}={value}" for key, value in own.items() if key.startswith(_SCALING))})
            raise InputError(
                f"{name} scales its rotary embeddings ({', '.join(found)}) as transformers does not. "
                "Name the model in a folder or on the hub."
            )
        scaled = {**rope, **scaling}
        config.rope_parameters = {**every, _FULL: scaled} if _FULL in every else scaled


def _set_width(config: Any, own: dict[str, Any]) -> None:
    """Set the width of heads, unless the layers have several."""
    width = own.get("attention.key_length")
    is_single = isinstance(width, int) and width == own.get("attention.value_length", width)
    if is_single and "attention.key_length_swa" not in own and hasattr(config, "num_attention_heads"):
        known = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if known != width:
            config.head_dim = width


def _scaling(config: Any, rope: dict[str, Any], own: dict[str, Any], factors: dict[str, Any]) -> dict[str, Any] | None:
    """Return the parameters of scaled rotary embeddings, none where they are not scaled; None for unknown scalings."""
    values = {key.removeprefix(_SCALING): value for key, value in own.items() if key.startswith(_SCALING)}
    kind = values.get("type", "none")
    if factors.keys() == {"rope_freqs.weight"} and kind == "none":
        return _llama3_scaling(config, rope, torch.tensor(factors["rope_freqs.weight"]).flatten().float())
    if factors:
        return None
    if kind == "yarn" and "factor" in values and values.keys() <= _YARN_KEYS:
        original = values.get("original_context_length", config.max_position_embeddings)
        return {"rope_type": "yarn", "factor": values["factor"], "original_max_position_embeddings": original}
    # Files of 2023 have no type.
    factor = values.get("factor", own.get("rope.scale_linear", 1.0))
    if kind == "linear" or (kind == "none" and factor != 1.0):
        return {"rope_type": "linear", "factor": factor}
    return {} if kind == "none" else None


def _llama3_scaling(config: Any, rope: dict[str, Any], stored: Tensor) -> dict[str, Any] | None:
    """Return the parameters that have the stored factors, ``[head_dim / 2]``; None if there are none."""
    trial = copy.deepcopy(config)
    for context in _LLAMA3_CONTEXTS:
        found = {**_LLAMA3, "factor": round(float(stored.max()), 4), "original_max_position_embeddings": context}
        trial.rope_parameters = {**rope, "rope_type": "llama3", **found}
        if torch.allclose(llama3_factors(trial, 2 * len(stored)), stored, rtol=1e-3):
            return {"rope_type": "llama3", **found}
    return None
