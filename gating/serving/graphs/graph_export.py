"""Export of compact models to ONNX and ``torch.export``, through the exporters of transformers."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from gating.compact.save import Processor
from gating.embedding.head import SentenceHead
from gating.report.metadata import is_sentence_folder
from gating.serving.contexts import checked_context, steady_context
from gating.serving.copies import as_converted, fix_rotations
from gating.serving.exporting import Exportable, exporting, load_processor, megabytes_of, reporting_failure
from gating.serving.graphs.batches import batch_to_trace, input_names
from gating.serving.graphs.check import Axes, ExportCheck, check_exported, check_quantized
from gating.serving.graphs.exporters import GraphFormat, export_graph, input_axes, of_transformers, quantize
from gating.serving.graphs.tracing import as_exported, pooled, quick_tracing, quiet_exporters

__all__ = ["GraphReport", "export_onnx", "export_torch"]


@dataclass(frozen=True)
class GraphReport(ExportCheck):
    """An export and the result of its check, in which refused batches are those that the model alone accepts.

    Attributes:
        folder: Folder of the export; ``ExportedModel.from_pretrained(folder)`` of transformers loads it.
        format: ``onnx`` or ``torch``.
        megabytes: Size of the folder, in millions of bytes.
        left_out: Inputs that the tokenizer or processor makes and the graph does not have.
        context: Sentence about texts that are too long for the graph; None if it takes all that the model does.
        int8_difference: Largest relative difference after quantization to 8-bit integers; None for float weights, of
            which ``max_difference`` is.
    """

    folder: Path
    format: GraphFormat
    megabytes: float
    left_out: tuple[str, ...]
    context: str | None = None
    int8_difference: float | None = None

    @property
    def path(self) -> Path:
        """The folder, by the name that it has in the reports of all formats."""
        return self.folder

    @property
    def sentences(self) -> tuple[str, ...]:
        """The contents and the result of the check, for people."""
        return tuple(self.describe(self.left_out, self.context, int8_difference=self.int8_difference))


def export_onnx(
    model_or_directory: Exportable,
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    int8: bool = False,
    overwrite: bool = False,
) -> GraphReport:
    """Export a model to ONNX, with the inputs that its tokenizer makes, and check its outputs in ONNX Runtime.

    The check runs batches of several sizes and lengths, with and without padding. Decoders that generate compute
    position ids from the attention mask, as ``generate`` does, so that left padding does not change their outputs;
    families with other position ids, such as RoBERTa, keep their own. From a folder of sentence-transformers, the graph
    also has the output ``sentence_embedding``, ``[batch, width]``.

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
    model_or_directory: Exportable,
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    overwrite: bool = False,
) -> GraphReport:
    """Export a model with ``torch.export``: arguments, but for ``int8``, and check are those of :func:`export_onnx`."""
    return _export_checked(
        model_or_directory, Path(save_directory), format="torch", tokenizer=tokenizer, overwrite=overwrite
    )


def _export_checked(
    model_or_directory: Exportable,
    place: Path,
    *,
    format: GraphFormat,
    tokenizer: Processor | None,
    int8: bool = False,
    overwrite: bool,
) -> GraphReport:
    with exporting(model_or_directory, place, format=format, overwrite=overwrite) as opened:
        model, origin, folder = opened
        processor: Any = load_processor(origin) if tokenizer is None else tokenizer
        model = _prepared(model, format)
        names, left_out = input_names(model, processor)
        batch = batch_to_trace(model, names, processor)
        int8_difference = None
        head = SentenceHead.load(origin) if origin is not None and is_sentence_folder(origin) else None
        with as_exported(model), pooled(model, head):
            with reporting_failure(model, format), quick_tracing(), quiet_exporters():
                exported = export_graph(model, batch, format)
            exported, axes = _save_and_load(model, format, exported, folder)
            check = check_exported(model, exported, axes, processor)
            if int8:
                with reporting_failure(model, "8-bit integers"), quiet_exporters():
                    quantize(exported, batch)
                exported, axes = _save_and_load(model, format, exported, folder)
                int8_difference = check_quantized(model, exported, axes, processor, floats=check)
        if processor is not None:
            processor.save_pretrained(folder)
        megabytes = megabytes_of(folder)
    return GraphReport(
        **vars(check),
        folder=place,
        format=format,
        megabytes=megabytes,
        left_out=(*left_out, *(name for name in names if name not in check.inputs)),
        context=checked_context(model.config)[1],
        int8_difference=int8_difference,
    )


def _prepared(model: PreTrainedModel, format: GraphFormat) -> PreTrainedModel:
    """Return a model or a copy whose operations the format has."""
    if format == "onnx":
        return as_converted(model)
    if steady_context(model.config) is not None:
        model = copy.deepcopy(model)
        fix_rotations(model)
    return model


def _save_and_load(model: PreTrainedModel, format: GraphFormat, exported: Any, folder: Path) -> tuple[Any, Axes]:
    """Save an export in a folder, and load it again with the shapes of its inputs."""
    with quiet_exporters():
        exported.save_pretrained(folder)
    with reporting_failure(model, format), quiet_exporters():
        # transformers unpickles a .pt2 only with trust; this process has just written it.
        loaded = of_transformers().ExportedModel.from_pretrained(folder, trust_remote_code=True)
    return loaded, input_axes(loaded, format)
