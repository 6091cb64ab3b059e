"""A tiny model with random parameters for every model type of transformers."""

import re
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from benchmarks.census.settings import SIZES, Sizes
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
# Tables whose classes are tried last.
_PARTS = ("TEXT_TO_WAVEFORM", "TEXT_ENCODING", "IMAGE")


@lru_cache(maxsize=1)
def model_types() -> dict[str, tuple[str, ...]]:
    """Return the names of the model classes of each model type that has any: whole models first."""
    names = [f"MODEL_FOR_{task}_MAPPING_NAMES" for task in _TASKS]
    names += ["MODEL_MAPPING_NAMES", *(f"MODEL_FOR_{part}_MAPPING_NAMES" for part in _PARTS)]
    tables = [getattr(modeling_auto, name) for name in names]
    found = {}
    for model_type in CONFIG_MAPPING:
        classes = [table[model_type] for table in tables if model_type in table]
        flat = [one if isinstance(one, str) else one[0] for one in classes]
        if any(model_type in table for table in tables[: -len(_PARTS)]):
            found[model_type] = tuple(dict.fromkeys(flat))
    return found


def build(
    model_type: str, sizes: Sizes = SIZES[0], *, class_name: str = "", seed: int = 0, spread: float = 0.1
) -> PreTrainedModel:
    """Build a tiny model with random parameters, in evaluation mode.

    Args:
        model_type: The model type.
        sizes: Sizes of the model.
        class_name: Name of the model's class; if left out, the first of its type.
        seed: Seed of the parameters.
        spread: Standard deviation of the parameters.

    Raises:
        ValueError: The model would be too large.
    """
    model_class = getattr(transformers, class_name or model_types()[model_type][0])
    config = _config_of(model_class, shrink(model_type, sizes))
    with torch.device("meta"):
        num_parameters = sum(weight.numel() for weight in model_class._from_config(config).parameters())
    if num_parameters > LARGEST:
        raise ValueError(f"{num_parameters:,} parameters: its settings have other names than those that are reduced")
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class._from_config(config).eval()
    return _randomize(model, seed=seed, spread=spread)


def _config_of(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of a configuration that a class is built from, such as that of the text."""
    parts = [getattr(config, name, None) for name in config.sub_configs or {}]
    return next((part for part in (config, *parts) if isinstance(part, model_class.config_class)), config)


def _randomize(model: Any, *, seed: int, spread: float) -> Any:
    """Draw all parameters anew, in place: those that a library sets to zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Tables of sines are frozen, and computed anew when a model is loaded.
            if not (parameter.is_floating_point() and parameter.requires_grad):
                continue
            noise = torch.randn(parameter.shape, generator=generator) * spread
            is_gain = name.endswith("weight") and parameter.dim() == 1
            parameter.copy_((1 + noise if is_gain else noise).to(parameter.dtype))
    return model


def looks_like_attention(module: nn.Module) -> bool:
    """Return whether the name of a module's class says attention, and it has parameters of its own or below."""
    named_so = re.search(r"attention|attn", type(module).__name__, re.I) is not None
    return named_so and next(module.parameters(), None) is not None
