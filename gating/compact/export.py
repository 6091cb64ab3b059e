"""Compact models for other runtimes: ONNX and torch.export, through the exporters of transformers."""

import functools
import importlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel

from gating.compact.export_batches import batch_to_trace, batches_to_check, input_names, real_positions
from gating.compact.load import load_compact
from gating.compact.save import Processor
from gating.discovery.probe import forward_outputs, make_probe, max_relative_difference
from gating.errors import MissingPackageError, OperationError, explain, loading, shorten
from gating.storage.folders import replacing_folder

__all__ = ["RuntimeFormat", "RuntimeReport", "export_onnx", "export_runtime"]

RuntimeFormat = Literal["onnx", "torch"]

# Runtimes add up in another order, and fuse what torch keeps apart.
_TOLERANCE = 1e-4

# A batch and the side of its padding.
Padded = tuple[dict[str, Tensor], str | None]

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class RuntimeReport:
    """What an export gave.

    Attributes:
        folder: Where it lies; ``ExportedModel.from_pretrained(folder)`` of transformers loads it.
        format: ``onnx`` or ``torch``.
        max_difference: Largest relative difference to the model's own outputs, at positions that are not padding, over
            all batches that were checked.
        megabytes: Size of the folder, in millions of bytes.
        inputs: The inputs of the graph, each with its axes: a name for one of any size, a number for a fixed one.
        checked: The batches that were checked, in words.
        refused: The inputs of batches that the model takes and the graph does not, each with its sizes.
        left_out: Inputs that the tokenizer or processor makes and the graph does not take.
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
    """Export a model for another runtime, with the inputs that its tokenizer makes, and check what it answers there.

    It is checked on batches of several sizes and lengths, with padding and without. Decoders that write number their
    tokens from the mask, as ``generate`` does, so that padding on the left changes nothing; those that do not count
    from 0, as RoBERTa's, number them as they do themselves.

    Args:
        model_or_directory: A compact model, or the folder of one.
        save_directory: Where the export goes; the folder appears whole or not at all.
        format: ``onnx`` for ONNX runtimes, ``torch`` for ``torch.export``.
        tokenizer: The tokenizer, or the processor, of a model: it tells the inputs, and is saved with the export.
            That of a folder is found there.
        overwrite: Whether an existing folder may be replaced.

    Returns:
        Where it lies, its inputs, and how far it differs.

    Raises:
        ImportError: The packages of the export are not installed.
        FileExistsError: The folder is there and not empty, and ``overwrite`` is false.
        RuntimeError: The exported model answers something else; nothing is written.
    """
    exporter, config, runner = _load_exporter(format)
    model, processor = _load(model_or_directory, tokenizer)
    model.eval()
    names, left_out = input_names(model, processor)
    place, sources = Path(save_directory), [model.name_or_path]
    with replacing_folder(place, overwrite=overwrite, kind="export", keep=sources) as folder, _as_exported(model):
        traced = batch_to_trace(model, names, processor)
        with _exporting(model, format):
            exported = exporter.export(model, traced, config=config)
        exported.save_pretrained(folder)
        with _exporting(model, format):
            # This process has just written it; transformers asks for trust before it unpickles a .pt2.
            exported = runner.from_pretrained(folder, trust_remote_code=True)
        axes = _axes(exported, format)
        difference, checked, refused = _check(model, exported, batches_to_check(model, list(axes), axes, processor))
        if processor is not None:
            processor.save_pretrained(folder)
        megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    inputs, words = _sizes_checked(checked)
    unused = [name for name in names if name not in axes]
    return RuntimeReport(
        Path(save_directory), format, difference, megabytes, inputs, words, refused, (*left_out, *unused)
    )


def export_onnx(
    model_or_directory: PreTrainedModel | str | os.PathLike[str],
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    overwrite: bool = False,
) -> RuntimeReport:
    """Export a model to ONNX: :func:`export_runtime` with that format."""
    return export_runtime(model_or_directory, save_directory, format="onnx", tokenizer=tokenizer, overwrite=overwrite)


def _load_exporter(format: RuntimeFormat) -> tuple[Any, Any, Any]:
    # Loaded by name: transformers' types do not tell what this package offers.
    exporters: Any = importlib.import_module("transformers.exporters")
    if format == "torch":
        return exporters.DynamoExporter(), exporters.DynamoConfig(dynamic=True), exporters.ExportedModel
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"The package {error.name} is needed to export to ONNX: pip install 'head-gating[export]'"
        ) from error
    return exporters.OnnxExporter(), exporters.OnnxConfig(dynamic=True), exporters.ExportedModel


def _load(
    model_or_directory: PreTrainedModel | str | os.PathLike[str], tokenizer: Processor | None
) -> tuple[PreTrainedModel, Any]:
    if isinstance(model_or_directory, PreTrainedModel):
        return model_or_directory, tokenizer
    folder = Path(model_or_directory)
    model = load_compact(folder)
    # Without its files, transformers makes an empty one up.
    if tokenizer is None and any((folder / name).is_file() for name in _PROCESSOR_FILES):
        with loading(str(folder), remedy="Export the model again."):
            return model, AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    return model, tokenizer


@contextmanager
def _exporting(model: PreTrainedModel, format: RuntimeFormat) -> Iterator[None]:
    """Say in one sentence that a family cannot be exported, whatever exporters and runtimes raise."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {shorten(explain(error).rstrip('.'), most=300)}"
        raise OperationError(
            f"{type(model).__name__} cannot be exported to {format} ({reason}). Nothing was written."
        ) from error


@contextmanager
def _as_exported(model: Any) -> Iterator[None]:
    """Leave the cache of decoders out, and have those that write number their tokens from the mask.

    ``generate`` does that outside of the model, where a graph does not reach.
    """
    use_cache, own, forward = getattr(model.config, "use_cache", None), vars(model).get("forward"), model.forward
    numbers_tokens = (
        model.main_input_name == "input_ids"
        and model.can_generate()
        and not model.config.is_encoder_decoder
        # Positions of text between images are made otherwise.
        and model.config.get_text_config() is model.config
        and "position_ids" in inspect.signature(forward).parameters
        and _counts_from_zero(model)
    )

    @functools.wraps(forward)
    def numbered(**inputs: Any) -> Any:
        if "attention_mask" in inputs:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return forward(**inputs)

    model.config.use_cache = False
    if numbers_tokens:
        model.forward = numbered
    try:
        yield
    finally:
        model.config.use_cache = use_cache
        vars(model).pop("forward", None)
        if own is not None:
            model.forward = own


def _counts_from_zero(model: PreTrainedModel) -> bool:
    """Say whether a model numbers tokens from 0, as ``generate`` does; RoBERTa's go on from the padding's number."""
    batch = make_probe(model)
    tokens = batch["input_ids"]
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    outputs = [forward_outputs(model, inputs) for inputs in (batch, {**batch, "position_ids": positions})]
    return max_relative_difference(*outputs) < _TOLERANCE


def _axes(exported: Any, format: RuntimeFormat) -> dict[str, tuple[object, ...]]:
    """Return the inputs of a graph; of their sizes, those that it fixed are numbers."""
    if format == "onnx":
        (runner,) = exported.runners.values()
        return {given.name: tuple(given.shape) for given in runner.session.get_inputs()}
    names = exported.program.graph_signature.user_inputs
    return {node.name: tuple(node.meta["val"].shape) for node in exported.program.graph.nodes if node.name in names}


def _check(
    model: PreTrainedModel, exported: Any, batches: Iterable[Padded]
) -> tuple[float, list[Padded], tuple[str, ...]]:
    """Return how far an exported model differs, on which batches, and the sizes of those that its graph refuses."""
    difference, checked, refused, reason = 0.0, list[Padded](), list[str](), ""
    for batch, side in batches:
        expected = forward_outputs(model, batch)
        try:
            actual = _floating(exported(**batch))
        except Exception as error:  # Each runtime has its own.
            name, tensor = next(iter(batch.items()))
            refused.append(f"{name} of {' x '.join(map(str, tensor.shape))}")
            reason = shorten(explain(error), most=300)
            continue
        real = [[real_positions(output, batch) for output in outputs] for outputs in (expected, actual)]
        difference = max(difference, max_relative_difference(*real))
        checked.append((batch, side))
    if not checked:
        raise OperationError(f"The exported model refuses every batch ({reason}). Nothing was written.")
    if difference > _TOLERANCE:
        raise OperationError(
            f"The exported model's outputs differ from the model's by {difference:.1e}, more than rounding. "
            "Nothing was written."
        )
    return difference, checked, tuple(dict.fromkeys(refused))


def _floating(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, (list, tuple)) else ()
    return [tensor for value in values for tensor in _floating(value)]


def _sizes_checked(checked: list[Padded]) -> tuple[dict[str, tuple[int | str, ...]], str]:
    """Return the axes of each input, those that had several sizes by name; and the sizes in words."""
    inputs: dict[str, tuple[int | str, ...]] = {}
    found: dict[str, set[int]] = {"batch": set()}
    for name in checked[0][0]:
        all_sizes = [set(sizes) for sizes in zip(*(batch[name].shape for batch, _ in checked), strict=True)]
        length = "decoder length" if name.startswith("decoder_") else "length"
        axes = ["batch", length, *(f"size {i}" for i in range(2, len(all_sizes)))]
        inputs[name] = tuple(
            axis if len(sizes) > 1 else min(sizes) for axis, sizes in zip(axes, all_sizes, strict=True)
        )
        for axis, sizes in zip(axes, all_sizes, strict=True):
            if len(sizes) > 1 or axis == "batch":
                found[axis] = found.get(axis, set()) | sizes
    words = [f"{'batche' if axis == 'batch' else axis}s of {_listed(sizes)}" for axis, sizes in found.items()]
    sides = sorted({side for _, side in checked if side is not None})
    return inputs, ", ".join(words) + f", padded {' and '.join(sides)}" * bool(sides)


def _listed(numbers: set[int]) -> str:
    *others, last = map(str, sorted(numbers))
    return f"{', '.join(others)} and {last}" if others else last
