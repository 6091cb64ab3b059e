"""Models to export, from a folder or in memory."""

import os
from pathlib import Path

from transformers import PreTrainedModel

from gating.compact.hub import find_folder
from gating.compact.load import load_compact

__all__ = ["load_decoder"]


def load_decoder(model_or_directory: PreTrainedModel | str | os.PathLike[str]) -> tuple[PreTrainedModel, Path | None]:
    """Return a model in evaluation mode, and its folder if it is loaded from one.

    Args:
        model_or_directory: A model, the folder of a compact model, or its name on the hub.
    """
    if isinstance(model_or_directory, PreTrainedModel):
        return model_or_directory.eval(), None
    folder = find_folder(model_or_directory)
    return load_compact(folder).eval(), folder
