"""Exports of models: opened with their processors, refused with the formats that take them, written and replaced."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from transformers import AutoProcessor, PreTrainedModel

from gating.compact.files import find_folder
from gating.compact.limits import check_finite, check_model
from gating.compact.load import load_compact
from gating.compact.recipe import processor_folder
from gating.errors import InputError, loading
from gating.proof.outputs import evaluating
from gating.report.results import Runtime
from gating.serving.formats import FORMATS, check_packages
from gating.storage.files import check_free, replacing_folder
from gating.vocabulary import check_vocabulary

# A compact model, its folder, or its name on the hub.
Exportable = PreTrainedModel | str | os.PathLike[str]
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@contextmanager
def exporting(
    model_or_directory: Exportable, place: Path, *, format: str, overwrite: bool
) -> Iterator[tuple[PreTrainedModel, Path | None, Path]]:
    """Load a model, and yield it with the folder of its processor, if any, and a new one that becomes the export.

    In the block the model is in evaluation mode. After an error in the block, nothing is written.
    """
    check_packages(format)
    # It is checked again when it is written; loading a model may take long.
    check_free(place, overwrite=overwrite)
    model, origin = load_model(model_or_directory, format=format)
    with evaluating(model), replacing_folder(place, overwrite=overwrite) as folder:
        yield model, origin, folder


def load_model(model_or_directory: Exportable, *, format: str) -> tuple[PreTrainedModel, Path | None]:
    """Return a model that the runtime of a format runs, and the folder with its processor if it is loaded from one."""
    folder = None
    if isinstance(model_or_directory, PreTrainedModel):
        model = model_or_directory
        check_model(model)
        check_finite(model, type(model).__name__)
    else:
        folder = find_folder(model_or_directory)
        model = load_compact(folder)
        folder = processor_folder(folder)
    if reason := FORMATS[format].reason_against(model):
        others = [name for name, row in FORMATS.items() if name != format and not row.reason_against(model)]
        raise InputError(f"{reason} Other formats take it: {', '.join(others)}.")
    return model, folder


def load_processor(folder: Path | None) -> Any:
    """Return the tokenizer or processor in the folder of a model; None if there is none."""
    # Without these files, transformers would create an empty tokenizer.
    if folder is None or not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        return None
    with loading(str(folder), remedy="Export the model again."):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    check_vocabulary(processor, name=str(folder))
    return processor


def special_tokens(kind: str, model: PreTrainedModel, tokenizer: Any = None) -> list[int]:
    """Return the tokens of a kind, such as ``eos``, in the settings of a model, and then that of its tokenizer.

    The settings of generation come before others. A chat model may end a turn with a token that they lack. Runtimes
    reject tokens outside of the vocabulary, which are left out.
    """
    found: list[int] = []
    for source in (model.generation_config, model.config, tokenizer):
        value = getattr(source, f"{kind}_token_id", None)
        numbers = value if isinstance(value, list) else [value]
        if not found or source is tokenizer:
            found += [number for number in numbers if type(number) is int and 0 <= number < model.config.vocab_size]
    return list(dict.fromkeys(found))


def writes_text(model: PreTrainedModel) -> bool:
    """Return whether a model is a decoder of text alone, which runtimes run with a cache."""
    reads_text = model.main_input_name == "input_ids" and model.config.get_text_config() is model.config
    return bool(model.can_generate()) and reads_text and not model.config.is_encoder_decoder


def megabytes_of(folder: Path) -> float:
    """Return the size of all files of a folder, in millions of bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def find_runtimes(
    model: PreTrainedModel, folder: Path, *, compact: Path | None = None, exports: Mapping[str, Path] | None = None
) -> list[Runtime]:
    """Return the runtimes of serving, with a command or the reason for which they do not run a model.

    Nothing is exported: an export is checked when it is written. The commands name ``folder``, that of the model or its
    run; ``compact`` is that of a stock model, which vLLM serves as it is. Of the places of ``exports``, by names such
    as ``onnx-int8``, those that exist are named with their runtime.
    """
    command = f"head-gating export {shlex.quote(str(folder))} --format "
    runtimes = []
    for format, row in FORMATS.items():
        places = [place for name, place in (exports or {}).items() if name.partition("-")[0] == format]
        if reason := row.reason_against(model):
            runtimes.append(Runtime(row.runtime, "", reason))
        elif made := tuple(place for place in places if place.exists()):
            runtimes.append(Runtime(row.runtime, "", exports=made))
        elif format == "vllm" and compact is not None:
            runtimes.append(Runtime(row.runtime, resolve_name("gating.serving.vllm:serve_stock")(model, compact)))
        else:
            runtimes.append(Runtime(row.runtime, f"{command}{format}"))
    return runtimes
