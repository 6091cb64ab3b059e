"""Export of compact models to ONNX and ``torch.export``, through the exporters of transformers."""

import copy
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from gating.compact.save import Processor
from gating.serving.contexts import checked_context, steady_context
from gating.serving.copies import as_converted, fix_rotations
from gating.serving.graphs.batches import batch_to_trace, input_names
from gating.serving.graphs.check import check_exported, check_quantized
from gating.serving.graphs.formats import EXPORT, FORMATS, RuntimeFormat
from gating.serving.graphs.int8 import quantize
from gating.serving.graphs.report import RuntimeReport
from gating.serving.graphs.tracing import as_exported, quick_tracing, quiet_exporters
from gating.serving.refusals import reporting_failure
from gating.serving.sources import load_model, load_processor, source_of
from gating.storage.folders import check_replaceable, replacing_folder

__all__ = ["RuntimeReport", "export_onnx", "export_torch"]


def export_onnx(
    model_or_directory: PreTrainedModel | str | os.PathLike[str],
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    int8: bool = False,
    overwrite: bool = False,
) -> RuntimeReport:
    """Export a model to ONNX, with the inputs that its tokenizer makes, and check its outputs in ONNX Runtime.

    The check runs batches of several sizes and lengths, with and without padding. Decoders that generate compute
    position ids from the attention mask, as ``generate`` does, so that left padding does not change their outputs;
    families with other position ids, such as RoBERTa, keep their own.

    Args:
        model_or_directory: A compact model, its folder, or its name on the hub.
        save_directory: Folder for the export; it is written whole or not at all.
        tokenizer: Tokenizer or processor of a model: it determines the inputs and is saved with the export. By default
            the one in the model's folder.
        int8: Whether the weights of matrix products become 8-bit integers, with activations quantized at run time. The
            graph with float weights is checked first. What this does to the accuracy depends on the model:
            :class:`gating.serving.graphs.runtime.GraphModel` is a module for measuring it.
        overwrite: Whether an earlier export in ``save_directory`` may be replaced.

    Returns:
        The folder, the inputs and the largest difference of the outputs.

    Raises:
        ImportError: onnxruntime or onnxscript is not installed.
        ValueError: ``int8`` is true for a model without weight matrices.
        FileExistsError: The folder is not empty and ``overwrite`` is false, or it is not an earlier export.
        RuntimeError: The model cannot be exported, or its outputs differ afterwards. Nothing is written.
    """
    return _export_checked(
        model_or_directory, Path(save_directory), format="onnx", tokenizer=tokenizer, int8=int8, overwrite=overwrite
    )


def export_torch(
    model_or_directory: PreTrainedModel | str | os.PathLike[str],
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    overwrite: bool = False,
) -> RuntimeReport:
    """Export a model with ``torch.export``, with the inputs that its tokenizer makes, and check its outputs.

    See :func:`export_onnx` for the check and the position ids.

    Args:
        model_or_directory: A compact model, its folder, or its name on the hub.
        save_directory: Folder for the export; it is written whole or not at all.
        tokenizer: Tokenizer or processor of a model; by default the one in the model's folder.
        overwrite: Whether an earlier export in ``save_directory`` may be replaced.

    Returns:
        The folder, the inputs and the largest difference of the outputs.

    Raises:
        FileExistsError: The folder is not empty and ``overwrite`` is false, or it is not an earlier export.
        RuntimeError: The model cannot be exported, or its outputs differ afterwards. Nothing is written.
    """
    return _export_checked(
        model_or_directory, Path(save_directory), format="torch", tokenizer=tokenizer, int8=False, overwrite=overwrite
    )


def _export_checked(
    model_or_directory: PreTrainedModel | str | os.PathLike[str],
    place: Path,
    *,
    format: RuntimeFormat,
    tokenizer: Processor | None,
    int8: bool,
    overwrite: bool,
) -> RuntimeReport:
    row, given = FORMATS[format], model_or_directory
    with quiet_exporters():
        export = row.load_exporter()
    source = source_of(given)
    # Before the model is loaded, too.
    check_replaceable(place, overwrite=overwrite, kind=EXPORT, keep=[source])
    model, origin = load_model(given)
    processor: Any = load_processor(origin) if tokenizer is None else tokenizer
    if format == "onnx":
        model = as_converted(model)
    elif steady_context(model.config) is not None:
        model = copy.deepcopy(model)
        fix_rotations(model)
    names, left_out = input_names(model, processor)
    sources, batch = [model.name_or_path], batch_to_trace(model, names, processor)
    with replacing_folder(place, overwrite=overwrite, kind=EXPORT, keep=sources) as folder, as_exported(model):
        exported = _export(model, format, export, batch, folder)
        check = check_exported(model, exported, row, processor)
        int8_difference = None
        if int8:
            with reporting_failure(model, "8-bit integers"), quiet_exporters():
                quantize(exported, batch)
            exported = _save_and_load(model, format, exported, folder)
            int8_difference = check_quantized(model, exported, row, processor, floats=check)
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
        context=checked_context(model.config)[1],
        int8_difference=int8_difference,
    )


def _export(
    model: PreTrainedModel, format: RuntimeFormat, export: Callable[..., Any], batch: dict[str, Tensor], folder: Path
) -> Any:
    """Export a model into a folder and load the export."""
    with reporting_failure(model, format), quick_tracing(), quiet_exporters():
        exported = export(model, batch)
    return _save_and_load(model, format, exported, folder)


def _save_and_load(model: PreTrainedModel, format: RuntimeFormat, exported: Any, folder: Path) -> Any:
    # Imported by name: the type stubs of transformers lack this package.
    exporters: Any = importlib.import_module("transformers.exporters")
    with quiet_exporters():
        exported.save_pretrained(folder)
    with reporting_failure(model, format), quiet_exporters():
        # transformers unpickles a .pt2 only with trust; this process has just written it.
        return exporters.ExportedModel.from_pretrained(folder, trust_remote_code=True)
