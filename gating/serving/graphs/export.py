"""Export of compact models to ONNX and ``torch.export``, through the exporters of transformers."""

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel

from gating.compact.hub import find_folder
from gating.compact.load import load_compact
from gating.compact.save import Processor
from gating.discovery.probe import forward_outputs, make_probe, max_relative_difference
from gating.errors import OperationError, explain, loading, shorten
from gating.serving.graphs.batches import batch_to_trace, input_names
from gating.serving.graphs.check import TOLERANCE, check_exported
from gating.serving.graphs.formats import EXPORT, RuntimeFormat, find_format
from gating.storage.folders import check_replaceable, replacing_folder

__all__ = ["RuntimeFormat", "RuntimeReport", "export_onnx", "export_runtime"]

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class RuntimeReport:
    """An export and the result of its check.

    Attributes:
        folder: Folder of the export; ``ExportedModel.from_pretrained(folder)`` of transformers loads it.
        format: ``onnx`` or ``torch``.
        max_difference: Largest relative difference to the model's own outputs over all checked batches, padding
            positions excluded.
        megabytes: Size of the folder, in millions of bytes.
        inputs: Inputs of the graph with their axes: a name for a dynamic axis, a number for a fixed one.
        checked: Description of the checked batches.
        refused: Batches that the model accepts and the graph rejects, each as an input and its shape.
        left_out: Inputs that the tokenizer or processor makes and the graph does not have.
    """

    folder: Path
    format: RuntimeFormat
    max_difference: float
    megabytes: float
    inputs: Mapping[str, tuple[int | str, ...]]
    checked: str
    refused: tuple[str, ...]
    left_out: tuple[str, ...]


def export_runtime(
    model_or_directory: PreTrainedModel | str | os.PathLike[str],
    save_directory: str | os.PathLike[str],
    *,
    format: RuntimeFormat = "onnx",
    tokenizer: Processor | None = None,
    overwrite: bool = False,
) -> RuntimeReport:
    """Export a model to another runtime, with the inputs that its tokenizer makes, and check its outputs there.

    The check runs batches of several sizes and lengths, with and without padding. Decoders that generate compute
    position ids from the attention mask, as ``generate`` does, so that left padding does not change their outputs;
    families with other position ids, such as RoBERTa, keep their own.

    Args:
        model_or_directory: A compact model, its folder, or its name on the hub.
        save_directory: Folder for the export; it is written whole or not at all.
        format: ``onnx`` for ONNX runtimes, ``torch`` for ``torch.export``.
        tokenizer: Tokenizer or processor of a model: it determines the inputs and is saved with the export. By default
            the one in the model's folder.
        overwrite: Whether an earlier export in ``save_directory`` may be replaced.

    Returns:
        The folder, the inputs and the largest difference of the outputs.

    Raises:
        ImportError: The packages for the export are not installed.
        ValueError: The format is unknown.
        FileExistsError: The folder is not empty and ``overwrite`` is false, or it is not an earlier export.
        RuntimeError: The model cannot be exported, or its outputs differ afterwards. Nothing is written.
    """
    row = find_format(format)
    export = row.load_exporter()
    place, given = Path(save_directory), model_or_directory
    source = given.name_or_path if isinstance(given, PreTrainedModel) else given
    # Before the model is loaded, too.
    check_replaceable(place, overwrite=overwrite, kind=EXPORT, keep=[source])
    model, processor = _load(model_or_directory, tokenizer)
    model.eval()
    names, left_out = input_names(model, processor)
    sources = [model.name_or_path]
    with replacing_folder(place, overwrite=overwrite, kind=EXPORT, keep=sources) as folder, _as_exported(model):
        exported = _export(model, format, export, batch_to_trace(model, names, processor), folder)
        check = check_exported(model, exported, row, processor)
        if processor is not None:
            processor.save_pretrained(folder)
        megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return RuntimeReport(
        folder=place,
        format=format,
        max_difference=check.max_difference,
        megabytes=megabytes,
        inputs=check.inputs,
        checked=check.checked,
        refused=check.refused,
        left_out=(*left_out, *(name for name in names if name not in check.inputs)),
    )


def export_onnx(
    model_or_directory: PreTrainedModel | str | os.PathLike[str],
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    overwrite: bool = False,
) -> RuntimeReport:
    """Export a model to ONNX and check its outputs in ONNX Runtime.

    Args:
        model_or_directory: A compact model, its folder, or its name on the hub.
        save_directory: Folder for the export; it is written whole or not at all.
        tokenizer: Tokenizer or processor of a model; by default the one in the model's folder.
        overwrite: Whether an earlier export in ``save_directory`` may be replaced.

    Returns:
        The folder, the inputs and the largest difference of the outputs.

    Raises:
        ImportError: onnxruntime or onnxscript is not installed.
        FileExistsError: The folder is not empty and ``overwrite`` is false, or it is not an earlier export.
        RuntimeError: The model cannot be exported, or its outputs differ afterwards. Nothing is written.
    """
    return export_runtime(model_or_directory, save_directory, format="onnx", tokenizer=tokenizer, overwrite=overwrite)


def _load(
    model_or_directory: PreTrainedModel | str | os.PathLike[str], tokenizer: Processor | None
) -> tuple[PreTrainedModel, Any]:
    if isinstance(model_or_directory, PreTrainedModel):
        return model_or_directory, tokenizer
    folder = find_folder(model_or_directory)
    model = load_compact(folder)
    # Without these files, transformers would create an empty tokenizer.
    if tokenizer is None and any((folder / name).is_file() for name in _PROCESSOR_FILES):
        with loading(str(folder), remedy="Export the model again."):
            return model, AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    return model, tokenizer


def _export(
    model: PreTrainedModel, format: RuntimeFormat, export: Callable[..., Any], batch: dict[str, Tensor], folder: Path
) -> Any:
    """Export a model into a folder and load the export."""
    exporters: Any = importlib.import_module("transformers.exporters")
    with _reporting_failure(model, format):
        exported = export(model, batch)
    exported.save_pretrained(folder)
    with _reporting_failure(model, format):
        # transformers unpickles a .pt2 only with trust; this process has just written it.
        return exporters.ExportedModel.from_pretrained(folder, trust_remote_code=True)


@contextmanager
def _reporting_failure(model: PreTrainedModel, format: RuntimeFormat) -> Iterator[None]:
    """Turn any error of exporters and runtimes into one sentence."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {shorten(explain(error).rstrip('.'), most=300)}"
        raise OperationError(
            f"{type(model).__name__} cannot be exported to {format} ({reason}). Nothing was written."
        ) from error


@contextmanager
def _as_exported(model: Any) -> Iterator[None]:
    """Disable the key-value cache, and let decoders that generate compute position ids from the attention mask.

    ``generate`` computes them outside of the forward pass, which a graph does not contain.
    """
    use_cache, own, forward = getattr(model.config, "use_cache", None), vars(model).get("forward"), model.forward

    @functools.wraps(forward)
    def forward_with_positions(**inputs: Any) -> Any:
        if "attention_mask" in inputs:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return forward(**inputs)

    needs_positions = _takes_positions_of_generate(model)
    model.config.use_cache = False
    if needs_positions:
        model.forward = forward_with_positions
    try:
        yield
    finally:
        model.config.use_cache = use_cache
        vars(model).pop("forward", None)
        if own is not None:
            model.forward = own


def _takes_positions_of_generate(model: Any) -> bool:
    """Return whether a model is a decoder of text whose position ids count real tokens from 0."""
    return (
        model.main_input_name == "input_ids"
        and model.can_generate()
        and not model.config.is_encoder_decoder
        # Models of text with images compute position ids in another way.
        and model.config.get_text_config() is model.config
        and "position_ids" in inspect.signature(model.forward).parameters
        and _counts_from_zero(model)
    )


def _counts_from_zero(model: PreTrainedModel) -> bool:
    """Return whether a model's position ids start at 0; those of RoBERTa start after the padding index."""
    batch = make_probe(model)
    tokens = batch["input_ids"]
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    outputs = [forward_outputs(model, inputs) for inputs in (batch, {**batch, "position_ids": positions})]
    return max_relative_difference(*outputs) < TOLERANCE
