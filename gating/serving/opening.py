"""Models to export with their processors, from a folder or in memory, and the packages of exports."""

import importlib
import os
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, PreTrainedModel

from gating.compact.hub import find_folder
from gating.compact.load import load_compact
from gating.discovery.vocabulary import check_vocabulary
from gating.errors import InputError, InputTypeError, MissingPackageError, loading
from gating.loader.integrity import check_finite
from gating.proof.conditions import check_has_values, check_no_adapters

__all__ = ["Exportable", "load_model", "load_processor", "require", "source_of"]

# A compact model, its folder, or its name on the hub.
Exportable = PreTrainedModel | str | os.PathLike[str]
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def require(package: str, *, target: str, extra: str = "serving") -> Any:
    """Import a package that an export needs.

    Raises:
        ImportError: It is not installed; the message names the extra of this package that has it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"The package {error.name} is needed to export to {target}: pip install 'head-gating[{extra}]'"
        ) from error


def source_of(model_or_directory: Exportable) -> str | os.PathLike[str]:
    """Return the place that a model is or was loaded from, which an export must not replace.

    Raises:
        TypeError: It is neither a model of transformers nor a path.
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


def load_model(model_or_directory: Exportable) -> tuple[PreTrainedModel, Path | None]:
    """Return a model in evaluation mode, and its folder if it is loaded from one.

    Raises:
        ValueError: The model still has gates or adapters, or its weights are NaN or infinite.
    """
    if not isinstance(model_or_directory, PreTrainedModel):
        folder = find_folder(model_or_directory)
        return load_compact(folder).eval(), folder
    model = model_or_directory
    if hasattr(model, "head_gates"):
        raise InputError("The model still has gates: call gating.finalize(model, gates) before exporting it.")
    check_no_adapters(model)
    check_has_values(model)
    check_finite(model, type(model).__name__)
    return model.eval(), None


def load_processor(folder: Path | None) -> Any:
    """Return the tokenizer or processor in the folder of a model; None if there is none."""
    # Without these files, transformers would create an empty tokenizer.
    if folder is None or not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        return None
    with loading(str(folder), remedy="Export the model again."):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    check_vocabulary(processor, size=None, name=str(folder))
    return processor
