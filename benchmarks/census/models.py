"""A tiny model with random parameters for every model type of transformers."""

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from benchmarks.census.settings import DERIVED, LISTS, MISSING, SIZES, SPECIAL, TOKEN, VALUES, Sizes

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
    """Build a tiny model with random parameters, in evaluation mode, by default of the first class of its type.

    ``spread`` is the standard deviation of the parameters.

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


def shrink(model_type: str, sizes: Sizes = SIZES[0]) -> PreTrainedConfig:
    """Return a tiny configuration of a model type; sizes, and tokens beyond the vocabulary, are replaced by name."""
    config_class = CONFIG_MAPPING[model_type]
    return _Shrinker(sizes).shrink(config_class, config_class())


class _Shrinker:
    """Replacement of the sizes of configurations by those of a tiny model."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def shrink(self, config_class: type[PreTrainedConfig], default: PreTrainedConfig) -> PreTrainedConfig:
        """Return a configuration with small sizes where the default has others."""
        parts = {
            name: shrink("resnet", self.sizes) if "timm" in value.model_type else self.shrink(type(value), value)
            for name in (config_class.sub_configs or {})
            if isinstance(value := getattr(default, name, None), PreTrainedConfig)
        }
        given = default.to_dict()
        counts = [given.get(name) for name in ("num_hidden_layers", "num_layers", "n_layer")]
        # Stages of one layer each stay; other layers become few.
        has_stages = isinstance(given.get("depths"), (list, tuple))
        staged = {"out_features": given["out_features"]} if has_stages and "out_features" in given else {}
        num_layers = {count for count in counts if isinstance(count, int) and count > 1 and not has_stages}
        settings = {
            name: self._small(name, value, num_layers)
            for name, value in given.items()
            if name not in parts and not DERIVED.fullmatch(name)
        }
        settings |= staged | _layer_types(default, settings)
        if has_stages and isinstance(settings.get("window_size"), int):
            settings["window_size"] = 2
        if settings.get("kv_lora_rank"):
            settings["num_key_value_heads"] = settings["num_attention_heads"]
        rope = settings.get("rope_parameters")
        if "mrope_section" in str(rope) or re.search("glm.*(v|ocr|image)|vl|omni|colqwen", config_class.model_type):
            head_dim = settings.get("head_dim", self.sizes.head_dim)
            rotary = int(head_dim * (rope or {}).get("partial_rotary_factor", 1.0)) // 2
            settings["rope_parameters"] = {
                **(rope or {}),
                "mrope_section": [rotary - 2 * (rotary // 3), *[rotary // 3] * 2],
            }
        if "use_timm_backbone" in settings:
            settings |= {"use_timm_backbone": False, "backbone": None}
        special = {name: self.sizes.of(value) for name, value in SPECIAL.get(config_class.model_type, {}).items()}
        return config_class(**{**parts, **settings, **special})

    def _small(self, name: str, value: Any, num_layers: Collection[int]) -> Any:
        if isinstance(value, dict):
            return {key: self._small(str(key), item, num_layers) for key, item in value.items()}
        if value is None:
            return self.sizes.of(MISSING.get(name))
        if isinstance(value, (list, tuple)) and len(value) in num_layers:
            return self._small(name, list(value)[: self.sizes.layers], ())
        if isinstance(value, bool) or not isinstance(value, (int, list, tuple)):
            return value
        if TOKEN.fullmatch(name):
            return _small_token(name, value)
        if isinstance(value, (list, tuple)):
            return self._small_list(name, value)
        for pattern, size in VALUES:
            if re.fullmatch(pattern, name):
                return min(value, self.sizes.of(size))
        return value

    def _small_list(self, name: str, values: Iterable[Any]) -> Any:
        values = list(values)
        if not values or not all(type(value) is int for value in values):
            return values
        for pattern, kind in LISTS:
            if re.fullmatch(pattern, name):
                if kind == "same":
                    return [32] * len(values)
                if kind == "layers":
                    return [1] * len(values)
                if kind == "heads":
                    return [min(value, 2) for value in values]
                return [min(value, 32) for value in values] if len(set(values)) == 1 else _rising(values)
        return [self._small(name, value, ()) for value in values]


def _layer_types(default: PreTrainedConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Return one layer of each type that a hybrid model has."""
    types = getattr(default, "layer_types", None)
    computed = [getattr(type(default), name, None) for name in ("layer_types", "layers_block_type")]
    is_computed = any(isinstance(one, property) for one in computed)
    if is_computed or not types or len(set(types)) == 1 or "num_hidden_layers" not in settings:
        return {}
    kinds = list(dict.fromkeys(types))
    return {"layer_types": kinds, "num_hidden_layers": len(kinds)}


def _rising(values: list[int]) -> list[int]:
    """Return small widths, the largest 64, that grow where those of the original do."""
    order = sorted(set(values))
    return [max(8, 64 // 2 ** (len(order) - 1 - order.index(value))) for value in values]


def _small_token(name: str, value: Any) -> Any:
    """Return a token inside the vocabulary; different names keep different tokens."""
    if isinstance(value, (list, tuple)):
        return [_small_token(name, item) for item in value]
    return value if not isinstance(value, int) or value < 200 else 200 + (sum(name.encode()) % 100)
