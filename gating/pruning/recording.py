"""Models that save and load themselves without their removed units: how their record is written, and their class."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from gating.loader.compact import CompactMixin, auto_places, compact_class
from gating.loader.integrity import RECORD_KEY
from gating.loader.modules import original_class
from gating.loader.parts import PARTS
from gating.loader.record import FORMAT
from gating.pruning.layer_settings import changed
from gating.pruning.traveling import choose_parts
from gating.structure.attention import AttentionBlock, iter_attention_blocks
from gating.structure.blocks import share_specs
from gating.structure.feed_forward import FeedForwardBlock, iter_feed_forward_blocks
from gating.structure.layers import LAYERS_KEY, layers_record

__all__ = [
    "become_compact",
    "build_original",
    "build_recorded",
    "dense_class",
    "dense_config",
    "describe_kept_units",
    "has_lost_units",
]

# The code of compact folders imports nothing of this package.
CompactMixin.choose_parts = choose_parts


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
    # A new model registers the name of its class; without it, no attentions or hidden states are returned.
    _CAN_RECORD_REGISTRY[model] = model._can_record_outputs
    setattr(model.config, RECORD_KEY, describe_kept_units(model))
    # transformers looks custom code up by Auto class; each one for this configuration gets its class.
    model.config.auto_map = auto_places(type(model.config))


def build_recorded(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Build the compact model of a configuration with a record, without memory; its blocks have their former sizes."""
    cls = compact_class(dense_class(model), type(config))
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
    former = getattr(config, RECORD_KEY, {}).get(LAYERS_KEY, {}).get("config", {})
    with torch.device(device):
        original = changed(dense_config(config), former)
        built: PreTrainedModel = dense_class(model)._from_config(original, dtype=model.dtype)
    share_specs(model, built)
    return built


def dense_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return the class of a compact or dense model in transformers."""
    return getattr(type(model), "dense_class", type(model))


def dense_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a configuration without the record and the references to code."""
    copied = deepcopy(config)
    for name in (RECORD_KEY, "auto_map"):
        vars(copied).pop(name, None)
    return copied


def has_lost_units(model: nn.Module) -> bool:
    """Return whether a removal was applied to a module, even one that kept everything."""
    has_lost = any(hasattr(module, "head_slots") or hasattr(module, "kept_groups") for module in model.modules())
    return has_lost or bool(layers_record(model))


def describe_kept_units(model: nn.Module) -> dict[str, Any]:
    """Return the record of the heads and neurons that a model has now, as :mod:`gating.loader.record` reads it."""
    attention, feed_forward = list(iter_attention_blocks(model)), list(iter_feed_forward_blocks(model))
    specs, layouts = _name_specs(attention)
    entries = {block.name: {"spec": layouts[block.name], **_describe(block)} for block in attention}
    record: dict[str, Any] = {"format": FORMAT, "specs": specs, "blocks": entries}
    if any(len(block.group_ids) < block.num_groups_before for block in feed_forward):
        record["feed_forward_specs"], layouts = _name_specs(feed_forward)
        record["feed_forward"] = {
            block.name: {
                "spec": layouts[block.name],
                "width": block.width_before,
                "group": block.group_size,
                "kept": list(block.group_ids),
            }
            for block in feed_forward
        }
    if layers := layers_record(model):
        record[LAYERS_KEY] = layers
    return record


def _name_specs(blocks: Sequence[AttentionBlock | FeedForwardBlock]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the layouts of blocks by name, each once, and the name of the layout of each block.

    The name is that of the class of the module, with a number where a class has several layouts.
    """
    specs: dict[str, Any] = {}
    known: dict[tuple[str, str], str] = {}
    names = {}
    for block in blocks:
        written = _write_spec(block.spec)
        class_name = original_class(type(block.module)).__name__
        key = class_name, json.dumps(written)
        if key not in known:
            number = sum(other == class_name for other, _ in known) + 1
            known[key] = class_name if number == 1 else f"{class_name}-{number}"
            specs[known[key]] = written
        names[block.name] = known[key]
    return specs, names


def _describe(block: AttentionBlock) -> dict[str, Any]:
    entry: dict[str, Any] = {"num_heads": block.num_heads_before, "kept_heads": list(block.head_ids)}
    if block.num_key_value_heads_before != block.num_heads_before:
        entry["num_key_value_heads"] = block.num_key_value_heads_before
    padding = [head for head in block.head_slots if head not in block.head_ids]
    return {**entry, "padding_heads": padding} if padding else entry


def _write_spec(spec: Any) -> dict[str, Any]:
    """Return the fields of a spec that differ from the defaults, as JSON has them.

    A replacement of ``forward`` is written as the name of a part of the loader; one of a user's own cannot be written.
    """
    written = {field.name: _lists(getattr(spec, field.name)) for field in fields(spec)}
    if written.get("forward") is not None:
        names = (name.removeprefix("forward ") for name, part in PARTS.items() if part is spec.forward)
        written["forward"] = next(names, None)
    # Experts are told by this field.
    return {
        field.name: written[field.name]
        for field in fields(spec)
        if written[field.name] != _lists(field.default) or field.name == "is_transposed"
    }


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, (tuple, list)) else value
