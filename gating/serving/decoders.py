"""Models to export, from a folder or in memory."""

import os
from pathlib import Path

from transformers import PreTrainedModel

from gating.compact.hub import find_folder
from gating.compact.load import load_compact
from gating.discovery.refusals import check_has_values, check_no_adapters
from gating.errors import InputError
from gating.structure.integrity import check_finite

__all__ = ["check_exportable", "load_decoder"]


def load_decoder(model_or_directory: PreTrainedModel | str | os.PathLike[str]) -> tuple[PreTrainedModel, Path | None]:
    """Return a model in evaluation mode, and its folder if it is loaded from one.

    Args:
        model_or_directory: A model, the folder of a compact model, or its name on the hub.

    Raises:
        ValueError: The model still has gates or adapters, or its weights are NaN or infinite.
    """
    if isinstance(model_or_directory, PreTrainedModel):
        check_exportable(model_or_directory)
        return model_or_directory.eval(), None
    folder = find_folder(model_or_directory)
    return load_compact(folder).eval(), folder


def check_exportable(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` for a model in memory that still has gates or adapters, or weights that are no numbers."""
    if hasattr(model, "head_gates"):
        raise InputError("The model still has gates: call gating.finalize(model, gates) before exporting it.")
    check_no_adapters(model)
    check_has_values(model)
    check_finite(model, type(model).__name__)
