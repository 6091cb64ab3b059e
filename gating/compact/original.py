"""The original of a compact model: its numbers of heads and neurons, also where the folder holds a dense model.

A stock folder has a record beside its files, ``head_gating.json``, which nothing needs to load the model: the
configuration of the original model with the record of kept units, as ``config.json`` of a compact folder has it.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from gating.compact.files import read_json, walk
from gating.errors import InputError, loading
from gating.pruning.compact_model import build_recorded, check_specs
from gating.storage.results import RECORD_FILE
from gating.structure.blocks import iter_attention_blocks
from gating.structure.feed_forward import iter_feed_forward_blocks
from gating.structure.record import RECORD_KEY

__all__ = ["read_original", "write_original"]

# Numbers that a model is built in a time proportional to, and a bound on them.
_COUNTED, _MOST = re.compile(r"(?i)(layers?|heads?|experts?|depths?|width|group)(\.\d+)?$"), 2**20
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depths")


def write_original(model: PreTrainedModel, folder: Path) -> None:
    """Write the record of a compact model into a stock folder.

    Args:
        model: The compact model, with the record in its configuration.
        folder: The folder.
    """
    config = deepcopy(model.config)
    vars(config).pop("auto_map", None)
    config.architectures = [type(model).__name__]
    (folder / RECORD_FILE).write_text(config.to_json_string(), encoding="utf-8")


def read_original(model: PreTrainedModel, folder: Path | None = None) -> PreTrainedConfig | None:
    """Return the configuration of the original of a model, with the record of kept units; None if it has lost none.

    Args:
        model: A compact model, or a model loaded from a stock folder.
        folder: The folder that it was loaded from, to look for a record there.

    Raises:
        ValueError: The record in the folder is damaged, or is that of another model.
    """
    if hasattr(model.config, RECORD_KEY):
        return model.config
    path = None if folder is None else folder / RECORD_FILE
    if path is None or not path.exists():
        return None
    described = read_json(path)
    with loading(str(path), remedy="Remove the file, which is not needed to load the model."):
        _check(described, model.config, path)
        config: PreTrainedConfig = type(model.config).from_dict(described)
        recorded = build_recorded(model, config)
    if _counts(recorded) != _counts(model):
        raise InputError(f"{path} is the record of another model than that in the folder. Remove the file.")
    return config


def _check(described: Mapping[str, Any], config: PreTrainedConfig, path: Path) -> None:
    """Reject a record of another kind of model, or one that asks for a model of any size."""
    record = described.get(RECORD_KEY)
    if not isinstance(record, dict):
        raise InputError(f"{path} has no record of kept units.")
    check_specs(record)
    mine = config.to_dict()
    for name in ("model_type", *_LAYERS):
        if described.get(name, mine.get(name)) != mine.get(name):
            raise InputError(f"{path} has {name}={described[name]!r}, but the model has {mine.get(name)!r}.")
    for name, value in walk(described):
        if type(value) is int and value > _MOST and _COUNTED.search(name):
            raise InputError(f"{path} has {name}={value}, which is no size of a model.")


def _counts(model: PreTrainedModel) -> dict[str, int]:
    heads = {block.name: block.num_heads for block in iter_attention_blocks(model)}
    return heads | {block.name: block.num_neurons for block in iter_feed_forward_blocks(model)}
