"""The original of a compact model: its numbers of heads and neurons, also where the folder holds a dense model.

A stock folder has a record beside its files, ``head_gating.json``, which nothing needs to load the model: the
configuration of the original model with the record of kept units, as ``config.json`` of a compact folder has it.
"""

from copy import deepcopy
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from gating.compact.limits import bounded_building
from gating.compact.manifest import has_manifest, read_record
from gating.errors import InputError, loading
from gating.loader.checksums import CHECKSUMS, RECORD_KEY
from gating.loader.record_checks import check_record
from gating.pruning.layers import build_original, build_recorded
from gating.storage.hub import RECORD_FILE
from gating.structure.attention import iter_attention_blocks
from gating.structure.feed_forward import iter_feed_forward_blocks

__all__ = ["read_original", "write_original"]

# A bound on the size of the original, as a multiple of that of the model.
_LARGER = 64


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
        if (found := described.get("model_type")) != model.config.model_type:
            raise InputError(f"{path} has model_type={found!r}, but the model has {model.config.model_type!r}.")
        check_record(described.get(RECORD_KEY))
        config: PreTrainedConfig = type(model.config).from_dict(described)
        sizes = [tensor.numel() for tensor in model.state_dict().values()]
        for build in (build_original, build_recorded):
            with bounded_building(path, len(sizes), most_elements=_LARGER * sum(sizes) + 2**24):
                recorded = build(model, config)
    if _counts(recorded) != _counts(model):
        raise InputError(f"{path} is the record of another model than that in the folder. Remove the file.")
    return config


def _counts(model: PreTrainedModel) -> dict[str, int]:
    heads = {block.name: block.num_heads for block in iter_attention_blocks(model)}
    return heads | {block.name: block.num_neurons for block in iter_feed_forward_blocks(model)}
