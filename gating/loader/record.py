"""The record of a compact model: the differences between its modules and those of the dense model.

Under the key ``head_gating`` of ``config.json``::

    {"format": 2,
     "modules": {"encoder.layer.0.attention.self.query": {"tensors": {"weight": [128, 768], "bias": [128]},
                                                          "attributes": {"out_features": 128}},
                 "encoder.layer.1.attention.self": {"without": ["query", "key", "value"],
                                                    "parts": [["emptied", "context", "^output.dense"]]}},
     "units": {"encoder.layer.0.attention.self": {"num_heads_before": 12, "head_ids": [0, 7], ...},
               "encoder.layer.0.output.dense": {"width_before": 3072, "group_size": 64, "kept_groups": [2, 9]}}}

An entry of ``modules`` may have the shapes of ``tensors``, tensors of integers that were ``added``, plain
``attributes``, ``counts`` of heads by names that other versions of transformers have for them, the names of parameters
and modules that the model is ``without``, values of its ``config`` that are read in its place, and ``parts`` of the
travelling code that change its class. Names lack the prefix of the base model, so that a record fits every task head.
``units`` are the kept ones by the numbers of the original model, for people, reports and further removals: no shape is
computed from them. If whole layers left, the configuration describes a model of the others; ``layers``, which nothing
here reads, has what the original had. For ``sha256``, see ``checksums.py``.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.models.auto import modeling_auto

from gating.loader.modeling import RECORD_KEY, base_prefix
from gating.loader.parts import ConfigView

FORMAT = 2
# Key of the part about layers that left: ``kept`` has the original numbers of the present layers of each list,
# ``config`` the former values of settings, ``heads`` and ``neurons`` the sizes of the blocks of layers that left.
LAYERS_KEY = "layers"
# Attributes with which a removal notes the units of a block, and a discovered layout.
UNIT_NOTES = (
    *("num_heads_before", "num_key_value_heads_before", "head_ids", "head_slots"),
    *("width_before", "group_size", "kept_groups"),
)
SPEC_NOTES = ("attention_spec", "feed_forward_spec")
# Names that classes of attention have for their number of heads.
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "all_head_size")
# Settings of training, and tables that grow with the longest text.
_IGNORED = {"training", "name_or_path", "gradient_checkpointing", "max_seq_len_cached"}


def dense_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return the class of a compact or dense model in transformers."""
    return getattr(type(model), "dense_class", type(model))


def dense_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a configuration without the record and the references to code."""
    copied = deepcopy(config)
    for name in (RECORD_KEY, "auto_map"):
        vars(copied).pop(name, None)
    return copied


def build_dense(model: PreTrainedModel) -> PreTrainedModel:
    """Build the dense model of a compact one without memory."""
    config = dense_config(model.config)
    with torch.device("meta"), initialization.no_init_weights():
        # Some classes want a dtype of torch in the configuration, as this gives it to them.
        built: PreTrainedModel = dense_class(model)._from_config(config, dtype=model.dtype)
    return built


def auto_classes(config_class: type | None) -> dict[str, type[PreTrainedModel]]:
    """Return the model class that each Auto class of transformers picks for a configuration."""
    found = {}
    # dir(transformers) would take a fifth of a second.
    for auto_name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None) if auto_name.startswith("AutoModel") else None
        if mapping is not None and config_class in mapping:
            choice = mapping[config_class]
            found[auto_name] = choice[0] if isinstance(choice, tuple) else choice
    return found


def describe(model: Any, dense: nn.Module | None = None) -> dict[str, Any]:
    """Return the record of a model, without checksums; the part on layers that left is that of its configuration."""
    dense = build_dense(model) if dense is None else dense
    prefix, others = base_prefix(model), dict(dense.named_modules())
    modules, units = {}, {}
    for name, module in model.named_modules():
        short = name.removeprefix(prefix)
        if name in others and (entry := {**_difference(others[name], module), **_counts_elsewhere(module)}):
            modules[short] = entry
        if notes := _notes(module):
            units[short] = notes
    layers = (getattr(getattr(model, "config", None), RECORD_KEY, None) or {}).get(LAYERS_KEY)
    return {"format": FORMAT, "modules": modules, "units": units, **({LAYERS_KEY: layers} if layers else {})}


def _difference(dense: Any, compact: Any) -> dict[str, Any]:
    """Return the difference of one module from that of the dense model."""
    before, now = dict(_tensors(dense)), dict(_tensors(compact))
    entry: dict[str, Any] = {
        # Tables that no checkpoint has grow with the longest text.
        "tensors": {
            name: list(now[name].shape)
            for name in before
            if name in now and name not in compact._non_persistent_buffers_set and now[name].shape != before[name].shape
        },
        "added": {name: list(now[name].shape) for name in now if name not in before and _is_index(compact, name)},
        "without": [
            # Masks that no checkpoint has are only in some versions of transformers.
            *(name for name in before if name not in now and name not in dense._non_persistent_buffers_set),
            *(
                name
                for name, child in dense.named_children()
                if compact._modules.get(name) is None and child is not None
            ),
        ],
        "attributes": {
            name: _lists(vars(compact)[name])
            for name, value in vars(dense).items()
            if name[0] != "_"
            and name not in _IGNORED
            and is_plain(value)
            and is_plain(vars(compact).get(name, ...))
            and vars(compact)[name] != value
        },
        "parts": [[_named(value) for value in one] for one in getattr(type(compact), "parts", ())],
    }
    if isinstance(config := vars(compact).get("config"), ConfigView):
        entry["config"] = {name: value for name, value in vars(config).items() if name != "_viewed"}
    return {name: value for name, value in entry.items() if value}


def _counts_elsewhere(module: nn.Module) -> dict[str, dict[str, int]]:
    """Return the number of heads, and their width, by names that other versions of transformers have in this module."""
    known = vars(module)
    num_slots, before = len(known.get("head_slots", ())), known.get("num_heads_before", 0)
    if not 0 < num_slots < before:
        return {}
    counts = {**dict.fromkeys(COUNTS, num_slots), "all_head_size": num_slots * known.get("head_dim", 0)}
    return {"counts": {name: count for name, count in counts.items() if count and name not in known}}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield name, tensor


def _is_index(module: nn.Module, name: str) -> bool:
    return name in module._buffers and not module._buffers[name].is_floating_point()  # type: ignore[union-attr]


def _named(value: Any) -> Any:
    """Return an argument of a part as a plain value: the name of a function."""
    return getattr(value, "__name__", _lists(value))


def _notes(module: nn.Module) -> dict[str, Any]:
    known = vars(module)
    # Other modules may have attributes of these names.
    is_noted = "head_slots" in known or "kept_groups" in known
    notes = {name: _lists(known[name]) for name in UNIT_NOTES if is_noted and name in known}
    for name in SPEC_NOTES:
        spec = vars(module).get(name)
        if is_dataclass(spec):
            notes[name] = {
                field.name: _named(getattr(spec, field.name))
                for field in fields(spec)
                if getattr(spec, field.name) != field.default
            }
        elif spec is not None:
            notes[name] = spec
    return notes


def is_plain(value: object) -> bool:
    """Return whether a value is a number, or a list or tuple of numbers."""
    return all(map(is_plain, value)) if isinstance(value, (tuple, list)) else isinstance(value, (int, float))


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, (tuple, list)) else value


def renamed(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a record with other names of its modules, and without those that have none."""
    return {
        **record,
        **{
            kind: {names[name]: entry for name, entry in record[kind].items() if name in names}
            for kind in ("modules", "units")
        },
    }
