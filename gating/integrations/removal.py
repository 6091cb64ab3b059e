"""Removal of units from a model that may have adapters: at the end of a search, and in a resumed recovery."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from gating.compact.stock import stock_model
from gating.errors import InputError, MissingFileError
from gating.gates import HeadGates
from gating.integrations.wrappers import merged
from gating.objectives.search import Search
from gating.pruning.finalize import FinalizeReport
from gating.pruning.prune import remove_in_copy
from gating.pruning.prune_report import unproven_note
from gating.pruning.repeat import remove_recorded
from gating.report.rows import CompactReport, size_rows
from gating.storage.files import replacing_file
from gating.storage.identity import file_digest

__all__ = [
    "check_compact_weights",
    "check_stock",
    "repeat_removal",
    "report_of",
    "save_compact_weights",
]

# Weights of the compact model, beside the checkpoints: those of the recovery have adapters only.
_WEIGHTS = "compact.safetensors"
# This key is in the header of that file; a file without it is the user's.
_MARK = {"written_by": "head-gating"}


def check_stock(model: PreTrainedModel, search: Search) -> None:
    """Raise ``StockError`` if a model of plain transformers cannot have the units that the search would keep now."""
    kept = search.objective.kept(search.gates)
    if kept is None:
        return  # Which gates will be open is not known before the search.
    with torch.device("meta"):
        meta_model = type(model)(deepcopy(model.config))
    stock_model(remove_in_copy(meta_model, search.gates, kept))


def check_compact_weights(folder: Path) -> None:
    """Raise ``InputError`` if a folder of checkpoints has another file in the place of the weights below adapters."""
    weights = folder / _WEIGHTS
    if weights.exists() and not _is_own(weights):
        raise InputError(
            f"{weights} was not written by a trainer with gates, and would be replaced by the weights below the "
            "adapters: move it, or give another args.output_dir."
        )


def _is_own(weights: Path) -> bool:
    try:
        with safetensors.safe_open(str(weights), framework="pt") as file:
            return _MARK.items() <= (file.metadata() or {}).items()
    except (safetensors.SafetensorError, OSError):
        return False


def save_compact_weights(model: PreTrainedModel, folder: Path) -> str:
    """Save the weights below the adapters of the recovery in the folder of the checkpoints; return their digest.

    Raises:
        InputError: A file of the user has their place.
    """
    check_compact_weights(folder)
    with replacing_file(folder / _WEIGHTS) as new:
        safetensors.torch.save_model(model, str(new), metadata=dict(_MARK))
    return file_digest(folder / _WEIGHTS)


def repeat_removal(
    model: nn.Module, gates: HeadGates, record: Mapping[str, Any], *, adapters: Any, folder: Path, digest: str | None
) -> PreTrainedModel:
    """Remove gates, adapters and units from a model as an earlier process did; return the compact model.

    The caller loads the weights of the checkpoint; with adapters, those below them are loaded here.

    Args:
        model: The model at the start of the training.
        gates: Its gates.
        record: Record of the compact model.
        adapters: Configuration of adapters; None without them.
        folder: Folder of the checkpoints.
        digest: Digest of the weights below the adapters; None without them.

    Raises:
        FileNotFoundError: The weights below the adapters are missing; nothing is changed.
        InputError: They are those of another training, and nothing is changed; or the checkpoint is of another model.
    """
    weights = folder / _WEIGHTS
    if adapters is not None and not weights.is_file():
        raise MissingFileError(
            f"{weights} does not exist, which has the weights below the adapters of the checkpoints in {folder}: "
            "resume from a checkpoint of the search."
        )
    if adapters is not None and file_digest(weights) != digest:
        raise InputError(
            f"{weights} has been replaced since, by the weights below the adapters of another training: resume from a "
            "checkpoint of the search."
        )
    gates.remove()
    base = merged(model)
    remove_recorded(base, record)
    if adapters is not None:
        safetensors.torch.load_model(base, str(weights), device=str(base.device))
    return base


def report_of(finalized: FinalizeReport | None) -> CompactReport | None:
    """Return the sizes before and after a removal for the model card; None after a resumed recovery."""
    if finalized is None:
        return None
    sizes: dict[str, tuple[float, float]] = {
        **{unit: (number, finalized.after.units[unit]) for unit, number in finalized.before.units.items()},
        "parameters": (finalized.num_parameters_before, finalized.num_parameters),
    }
    note = unproven_note(finalized.unproven)
    return CompactReport(rows=size_rows(sizes, {}), notes=[f"{note}."] if note else [])
