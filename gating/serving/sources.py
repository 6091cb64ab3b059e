"""Models to export with their processors, from a folder or in memory."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, PreTrainedModel

from gating.compact.hub import find_folder
from gating.compact.load import load_compact
from gating.discovery.vocabulary import check_vocabulary
from gating.errors import InputError, InputTypeError, loading
from gating.proof.conditions import check_has_values, check_no_adapters
from gating.structure.integrity import check_finite

__all__ = ["load_model", "load_processor", "source_of"]

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def source_of(model_or_directory: PreTrainedModel | str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the place that a model is or was loaded from, which an export must not replace.

    Args:
        model_or_directory: A model, the folder of a compact model, or its name on the hub.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(model_or_directory, PreTrainedModel):
        return str(model_or_directory.name_or_path)
    if not isinstance(model_or_directory, (str, os.PathLike)):
        has_adapters = hasattr(model_or_directory, "merge_and_unload")
        raise InputTypeError(
            f"Only models of transformers can be exported, got {type(model_or_directory).__name__}."
            + " Merge its adapters: model.merge_and_unload()." * has_adapters
        )
    return model_or_directory


def load_model(model_or_directory: PreTrainedModel | str | os.PathLike[str]) -> tuple[PreTrainedModel, Path | None]:
    """Return a model in evaluation mode, and its folder if it is loaded from one.

    Args:
        model_or_directory: A model, the folder of a compact model, or its name on the hub.

    Raises:
        ValueError: The model still has gates or adapters, or its weights are NaN or infinite.
    """
    if isinstance(model_or_directory, PreTrainedModel):
        _check_exportable(model_or_directory)
        return model_or_directory.eval(), None
    folder = find_folder(model_or_directory)
    return load_compact(folder).eval(), folder


def load_processor(folder: Path | None) -> Any:
    """Return the tokenizer or processor in the folder of a model; None if there is none."""
    # Without these files, transformers would create an empty tokenizer.
    if folder is None or not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        return None
    with loading(str(folder), remedy="Export the model again."):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    check_vocabulary(processor, size=None, name=str(folder))
    return processor


def _check_exportable(model: PreTrainedModel) -> None:
    if hasattr(model, "head_gates"):
        raise InputError("The model still has gates: call gating.finalize(model, gates) before exporting it.")
    check_no_adapters(model)
    check_has_values(model)
    check_finite(model, type(model).__name__)
