"""A tiny model with random parameters for every model type of transformers."""

import re
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto

from benchmarks.census.shrink import shrink

__all__ = ["LARGEST", "build", "looks_like_attention", "model_types"]

# Number of parameters beyond which a model is not built.
LARGEST = 40_000_000
# The whole model, with its heads for generation, before its parts.
_TASKS = (
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "CAUSAL_LM",
    "MASKED_LM",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "ZERO_SHOT_OBJECT_DETECTION",
    "OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION",
    "IMAGE_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "DEPTH_ESTIMATION",
    "PRETRAINING",
)


@lru_cache(maxsize=1)
def model_types() -> dict[str, str]:
    """Return the name of one model class for each model type that has any."""
    tables = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in _TASKS]
    tables.append(modeling_auto.MODEL_MAPPING_NAMES)
    found = {}
    for model_type in CONFIG_MAPPING:
        names = [table[model_type] for table in tables if model_type in table]
        if names:
            found[model_type] = names[0] if isinstance(names[0], str) else names[0][0]
    return found


def build(model_type: str, *, seed: int = 0, spread: float = 0.1) -> PreTrainedModel:
    """Build a tiny model with random parameters, in evaluation mode.

    Args:
        model_type: The model type.
        seed: Seed of the parameters.
        spread: Standard deviation of the parameters.

    Raises:
        ValueError: The model would be too large.
    """
    config, model_class = shrink(model_type), getattr(transformers, model_types()[model_type])
    with torch.device("meta"):
        num_parameters = sum(weight.numel() for weight in model_class._from_config(config).parameters())
    if num_parameters > LARGEST:
        raise ValueError(f"{num_parameters:,} parameters: its settings have other names than those that are reduced")
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class._from_config(config).eval()
    return _randomize(model, seed=seed, spread=spread)


def _randomize(model: Any, *, seed: int, spread: float) -> Any:
    """Draw all parameters anew, in place: those that a library sets to zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator) * spread
            is_gain = name.endswith("weight") and parameter.dim() == 1
            parameter.copy_((1 + noise if is_gain else noise).to(parameter.dtype))
    return model


def looks_like_attention(module: nn.Module) -> bool:
    """Return whether the name of a module's class says attention, and it has parameters of its own or below."""
    named_so = re.search(r"attention|attn", type(module).__name__, re.I) is not None
    return named_so and next(module.parameters(), None) is not None
