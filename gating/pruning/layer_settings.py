"""Settings that a configuration has layer by layer, for a model that layers have left."""

import copy
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from transformers import PreTrainedConfig

from gating.loader.checksums import RECORD_KEY

__all__ = ["Settings", "changed", "nested_configs", "setting_of", "settings_without_layers"]

# Values of settings of a configuration and of those in it, by dotted name.
Settings = dict[str, Any]

_COUNT = re.compile(r"(layers?|depth|num_blocks)$")
_PER_LAYER = re.compile(r"layer|block|attn|attention|mlp|moe|rope|window|pattern|kv_heads|key_value")
# Numbers of layers; of those without rotary embedding, there is a mark for each layer.
_NUMBERS = re.compile(r"((?<!no_rope_)layers|idxs|idx|indexes|indices|layer_ids)$")
# Settings with a number of first layers, and with one of last layers.
_FIRST = re.compile(r"first_k_dense_replace|max_window_layers|n(um)?_dense_layers")
_LAST = re.compile(r"num_kv_shared_layers")


def settings_without_layers(config: PreTrainedConfig, kept: Sequence[int], *, num_layers: int) -> Iterator[Settings]:
    """Yield settings that may describe a model of which some layers are left, the likeliest first.

    A number of layers is found by its value, lists by their length; only a model that is built tells the right ones.

    Args:
        config: The configuration.
        kept: Numbers of the layers that stay in a list.
        num_layers: Number of layers in the list before.
    """
    for path, part in nested_configs(config):
        fields = {name: value for name, value in vars(part).items() if name != RECORD_KEY and name[0] != "_"}
        counts = [n for n, v in fields.items() if type(v) is int and v == num_layers and _COUNT.search(n)]
        others = {
            f"{path}{name}": new
            for name, value in fields.items()
            if name not in counts and (new := _without(name, value, kept, num_layers)) != value
        }
        stages = fields.get("stage_names")
        has_stages = isinstance(stages, list) and len(stages) == num_layers + 1
        if stages and has_stages and getattr(part, "out_features", None) == stages[-1:]:
            # Vision models whose layers are stages: those that return the last one.
            stages = stages[: len(kept) + 1]
            others |= {f"{path}stage_names": stages, f"{path}out_features": stages[-1:]}
        for size in range(1, min(len(counts), 3) + 1):
            for chosen in combinations(counts, size):
                numbers = {f"{path}{name}": len(kept) for name in chosen}
                yield {**numbers, **others}
                if others:
                    yield numbers
        if others:
            yield others


def changed(config: PreTrainedConfig, settings: Settings) -> PreTrainedConfig:
    """Return a copy of a configuration with other values of some settings."""
    copied = copy.deepcopy(config)
    parts = dict(nested_configs(copied))
    for name, value in settings.items():
        path, _, last = name.rpartition(".")
        setattr(parts[f"{path}." if path else ""], last, copy.deepcopy(value))
    return copied


def setting_of(config: PreTrainedConfig, name: str) -> Any:
    """Return the value of a setting of a configuration, or of one in it, by its dotted name."""
    path, _, last = name.rpartition(".")
    return getattr(dict(nested_configs(config))[f"{path}." if path else ""], last)


def nested_configs(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[str, PreTrainedConfig]]:
    """Yield a configuration and those in it, with the dotted path before the names of their settings."""
    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from nested_configs(value, f"{path}{name}.")


def _without(name: str, value: Any, kept: Sequence[int], num_layers: int) -> Any:
    """Return the value of a setting without its entries for the layers that leave."""
    if type(value) is int:
        if _FIRST.fullmatch(name):
            return sum(layer < value for layer in kept)
        return sum(layer >= num_layers - value for layer in kept) if _LAST.fullmatch(name) else value
    if not (isinstance(value, (list, tuple)) and value):
        return value
    is_numbers = all(type(item) is int for item in value) and _NUMBERS.search(name) and "out_" not in name
    if is_numbers and list(value) == sorted(set(value)) and value[-1] < num_layers:
        return type(value)(kept.index(item) for item in value if item in kept)
    if len(value) == num_layers and _PER_LAYER.search(name):
        return type(value)(value[layer] for layer in kept)
    return value
