"""Models that save and load themselves without their removed units: their record of kept units, and their class."""

import re
import typing
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from gating.discovery.discover import share_specs
from gating.structure.attention_spec import AttentionSpec, Returns, RowLayout
from gating.structure.blocks import AttentionBlock, iter_attention_blocks
from gating.structure.compact import auto_places, compact_class
from gating.structure.families import find_spec
from gating.structure.feed_forward import ExpertsBlock, FeedForwardBlock, iter_feed_forward_blocks
from gating.structure.feed_forward_specs import UpLayout, find_feed_forward_spec
from gating.structure.record import FORMAT_OF_HEADS, FORMAT_OF_NEURONS, RECORD_KEY, damaged
from gating.structure.subclasses import original_class

__all__ = [
    "become_compact",
    "build_original",
    "build_recorded",
    "check_specs",
    "describe_kept_units",
    "has_lost_units",
]

# Names in a spec: not private, and no way up except to the parent.
_NAME = r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*_?"
_DOTTED = rf"{_NAME}(\.(\d+|{_NAME}))*"
_PATH = rf"\^?{_DOTTED}"
_BELOW = rf"(\d+|{_NAME})(\.(\d+|{_NAME}))*"


def become_compact(model: nn.Module) -> None:
    """Change a model whose heads or neurons were removed, in place, to the class that saves and loads it.

    Writes the record of kept heads and neurons into its configuration. Of a module that only holds transformers models,
    as a SentenceTransformer does, those that have lost any are changed.
    """
    if not isinstance(model, PreTrainedModel):
        for child in model.children():
            if has_lost_units(child):
                become_compact(child)
        return
    model.__class__ = compact_class(type(model), type(model.config))
    # By the name of the class, which a new model registers; without it, no attentions or hidden states are returned.
    _CAN_RECORD_REGISTRY[model] = model._can_record_outputs
    setattr(model.config, RECORD_KEY, describe_kept_units(model))
    # transformers looks custom code up by Auto class; each one for this configuration gets its class.
    model.config.auto_map = auto_places(type(model.config))


def build_recorded(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Build the compact model of a configuration with a record, without memory; its blocks have their former sizes."""
    cls = compact_class(getattr(type(model), "dense_class", type(model)), type(config))
    with torch.device("meta"), initialization.no_init_weights():
        built: PreTrainedModel = cls._from_config(deepcopy(config), dtype=model.dtype)
    return built


def build_original(
    model: PreTrainedModel, config: PreTrainedConfig, *, device: str | torch.device = "meta"
) -> PreTrainedModel:
    """Build the dense model of a configuration with a record: all heads and neurons, and random weights.

    Args:
        model: The compact or stock model, whose dtype it gets.
        config: The configuration of the compact model, or that of :func:`~gating.compact.original.read_original`.
        device: Its device; on ``meta``, it has no weights.
    """
    config = deepcopy(config)
    for name in (RECORD_KEY, "auto_map"):
        vars(config).pop(name, None)
    with torch.device(device):
        built: PreTrainedModel = getattr(type(model), "dense_class", type(model))._from_config(
            config, dtype=model.dtype
        )
    share_specs(model, built)
    return built


def has_lost_units(model: nn.Module) -> bool:
    """Return whether heads or neurons of a module were removed, or the attempt has marked it so."""
    return any(hasattr(module, "head_slots") or hasattr(module, "kept_groups") for module in model.modules())


def describe_kept_units(model: nn.Module) -> dict[str, Any]:
    """Return the record of the heads and neurons that a model has now."""
    heads = _describe_heads(list(iter_attention_blocks(model)))
    blocks = list(iter_feed_forward_blocks(model))
    # Without removed neurons, earlier versions of this package can read the record.
    if all(len(block.group_ids) == block.num_groups_before for block in blocks):
        return {"format": FORMAT_OF_HEADS, **heads}
    return {"format": FORMAT_OF_NEURONS, **heads, **_describe_neurons(blocks)}


def _describe_heads(blocks: Sequence[AttentionBlock]) -> dict[str, Any]:
    record: dict[str, Any] = {"blocks": {block.name: _describe(block) for block in blocks}}
    specs = {
        original_class(type(block.module)).__name__: _write_spec(block.spec)
        for block in blocks
        if block.spec != find_spec(block.module, shipped_only=True)
    }
    return {**record, "specs": specs} if specs else record


def _describe_neurons(blocks: Sequence[FeedForwardBlock]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "feed_forward": {
            block.name: {"width": block.width_before, "group": block.group_size, "kept": list(block.group_ids)}
            for block in blocks
        }
    }
    specs = {
        block.name: {"ups": _lists(block.spec.ups), "down": block.spec.down}
        for block in blocks
        if not isinstance(block, ExpertsBlock) and block.spec != find_feed_forward_spec(block.module, shipped_only=True)
    }
    return {**record, "feed_forward_specs": specs} if specs else record


def check_specs(record: object) -> None:
    """Raise ``ValueError`` for a record with a spec that names anything but modules and parameters."""
    specs = record.get("specs", {}) if isinstance(record, dict) else {}
    for name, spec in specs.items() if isinstance(specs, dict) else ():
        if not isinstance(spec, dict) or not {"projections", "output_projection"} <= set(spec) <= set(_FIELDS):
            raise damaged(f"the spec of {name} is not that of an attention class")
        for key, value in spec.items():
            if not _FIELDS[key](value):
                raise damaged(f"the spec of {name} has {key}={value!r}")
    specs = record.get("feed_forward_specs", {}) if isinstance(record, dict) else {}
    for name, spec in specs.items() if isinstance(specs, dict) else ():
        is_known = isinstance(spec, dict) and set(spec) == {"ups", "down"} and _is_text(spec["down"], _BELOW)
        if not (is_known and _are_ups(cast(dict[str, object], spec)["ups"])):
            raise damaged(f"the layout of {name} is not that of a feed-forward block")


def _describe(block: AttentionBlock) -> dict[str, Any]:
    entry = {"num_heads": block.num_heads_before, "kept_heads": list(block.head_ids)}
    padding = [head for head in block.head_slots if head not in block.head_ids]
    return {**entry, "padding_heads": padding} if padding else entry


def _write_spec(spec: AttentionSpec) -> dict[str, Any]:
    """Return the fields of a spec that differ from the defaults, as JSON has them."""
    return {
        field.name: _lists(getattr(spec, field.name))
        for field in fields(spec)
        if getattr(spec, field.name) != field.default and field.name in _FIELDS
    }


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def _is_text(value: object, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(_is_text(name, _NAME) for name in value)


def _are_pairs(value: object, is_second: Callable[[object], bool], *, path: str = _PATH) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _is_text(pair[0], path) and is_second(pair[1]) for pair in value
    )


def _are_ups(value: object) -> bool:
    return bool(value) and _are_pairs(value, lambda layout: layout in typing.get_args(UpLayout), path=_BELOW)


def _are_dims(value: object) -> bool:
    return _are_pairs(value, lambda dim: type(dim) is int and 0 <= dim < 8)


# Valid values of the fields in a record; a replacement of forward cannot be written there.
_FIELDS: dict[str, Callable[[object], bool]] = {
    "projections": lambda value: _are_pairs(value, lambda layout: layout in typing.get_args(RowLayout)),
    "output_projection": lambda value: _is_text(value, _PATH),
    "other_outputs": lambda value: isinstance(value, list) and all(_is_text(path, _PATH) for path in value),
    "head_dim": lambda value: _is_text(value, _NAME),
    "key_dim": lambda value: _is_text(value, _NAME),
    "returns": lambda value: value in typing.get_args(Returns),
    "borrowed": lambda value: value in ("", "v", "kv"),
    **dict.fromkeys(("is_cross_attention", "has_state", "lends"), lambda value: isinstance(value, bool)),
    "head_counts": lambda value: isinstance(value, list) and all(_is_text(path, _PATH) for path in value),
    **dict.fromkeys(("head_widths", "key_widths", "config_counts"), _are_names),
    **dict.fromkeys(("per_head", "per_key_value_head", "per_head_inputs"), _are_dims),
}
