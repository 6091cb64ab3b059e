"""A tiny configuration of any model type of transformers, by the names of its settings."""

import re
from collections.abc import Collection, Iterable
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from benchmarks.census.settings import DERIVED, LISTS, MISSING, SIZES, SPECIAL, TOKEN, VALUES, Sizes

__all__ = ["shrink"]


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
