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

from gating.compact.files import walk
from gating.compact.manifest import has_manifest, read_record
from gating.compact.size_fields import is_size
from gating.errors import InputError, loading
from gating.loader.checksums import CHECKSUMS, RECORD_KEY
from gating.loader.record_checks import check_record
from gating.pruning.prune_report import num_parameters
from gating.pruning.recording import build_original, build_recorded
from gating.storage.results import RECORD_FILE
from gating.structure.attention import iter_attention_blocks
from gating.structure.feed_forward import iter_feed_forward_blocks

__all__ = ["read_original", "write_original"]

# A bound on the sizes of a layer.
_MOST = 2**20
# A bound on the size of the original, as a multiple of that of the model: a small one is never too large.
_LARGER, _SMALL = 64, 2**24
# Entries of configurations that are no properties of the architecture.
_FREE = frozenset({"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"})


def write_original(model: PreTrainedModel, folder: Path) -> None:
    """Write the record of a compact model into a stock folder."""
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
    if folder is None or not has_manifest(folder):
        return None
    path = folder / RECORD_FILE
    described = read_record(path)
    described.pop(CHECKSUMS, None)
    # Other folders have the checksums only.
    if not described:
        return None
    with loading(str(path), remedy="Remove the file, which is not needed to load the model."):
        _check_record(described, model.config.model_type, path)
        config: PreTrainedConfig = type(model.config).from_dict(described)
        _check_sizes(config.to_dict(), model.config.to_dict(), path)
        recorded = build_recorded(model, config)
        original = num_parameters(build_original(model, config))
    if _counts(recorded) != _counts(model):
        raise InputError(f"{path} is the record of another model than that in the folder. Remove the file.")
    if original > _LARGER * num_parameters(model) + _SMALL:
        raise InputError(f"{path} is of a model of {original:,} parameters, far larger than this one. Remove the file.")
    return config


def _check_record(described: Mapping[str, Any], model_type: str, path: Path) -> None:
    """Reject a record of another kind of model, or with names that no record has, before a model is built."""
    if (found := described.get("model_type")) != model_type:
        raise InputError(f"{path} has model_type={found!r}, but the model has {model_type!r}.")
    record = described.get(RECORD_KEY)
    if not isinstance(record, dict):
        raise InputError(f"{path} has no record of kept units.")
    check_record(record)


def _check_sizes(described: Mapping[str, Any], mine: Mapping[str, Any], path: Path) -> None:
    """Reject the configuration of a model that differs in more than numbers of heads and neurons, or has fewer."""
    theirs, ours = (dict(walk(dict(table))) for table in (described, mine))
    for name in sorted(theirs.keys() | ours.keys()):
        before, after = theirs.get(name), ours.get(name)
        last = re.sub(r"\.\d+$", "", name).rpartition(".")[2]
        is_table = any(isinstance(value, (dict, list)) for value in (before, after))
        if before == after or is_table or last in _FREE or name.partition(".")[0] == RECORD_KEY:
            continue
        problem = f"{path} has {name}={before!r}, but the model has {after!r}"
        # None is a size that is computed from others.
        more, fewer = (0 if value is None else value for value in (before, after))
        if not (is_size(last) and isinstance(more, (int, float)) and isinstance(fewer, (int, float))):
            raise InputError(f"{problem}. Remove the file, which is not needed to load the model.")
        is_part = last == "head_dim" or fewer <= more
        if before is not None and not (is_part and 0 <= more <= _MOST):
            raise InputError(f"{problem}, which cannot be a part of that. Remove the file.")


def _counts(model: PreTrainedModel) -> dict[str, int]:
    heads = {block.name: block.num_heads for block in iter_attention_blocks(model)}
    return heads | {block.name: block.num_neurons for block in iter_feed_forward_blocks(model)}
