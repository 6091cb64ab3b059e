"""Compact models for other runtimes: ONNX and torch.export, through the exporters of transformers."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from gating.folder import replacing_folder
from gating.heads.probe import forward_outputs, make_probe, max_relative_difference
from gating.loading import load_compact

__all__ = ["RuntimeFormat", "RuntimeReport", "export_onnx", "export_runtime"]

RuntimeFormat = Literal["onnx", "torch"]

# Runtimes add up in another order, and fuse what torch keeps apart.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class RuntimeReport:
    """What an export gave.

    Attributes:
        folder: Where it lies; ``ExportedModel.from_pretrained(folder)`` of transformers loads it.
        format: ``onnx`` or ``torch``.
        max_difference: Largest relative difference to the model's own outputs, on a batch of another size and length
            than the one it was traced with.
        megabytes: Size of the folder, in millions of bytes.
    """

    folder: Path
    format: RuntimeFormat
    max_difference: float
    megabytes: float


def export_runtime(
    model_or_directory: PreTrainedModel | str | os.PathLike[str],
    save_directory: str | os.PathLike[str],
    *,
    format: RuntimeFormat = "onnx",
    overwrite: bool = False,
) -> RuntimeReport:
    """Export a model for another runtime, with any batch size and length, and check what it answers there.

    Args:
        model_or_directory: A compact model, or the folder of one.
        save_directory: Where the export goes; the folder appears whole or not at all.
        format: ``onnx`` for ONNX runtimes, ``torch`` for ``torch.export``.
        overwrite: Whether an existing folder may be replaced.

    Returns:
        Where it lies and how far it differs.

    Raises:
        ImportError: The packages of the export are not installed.
        FileExistsError: The folder is there and not empty, and ``overwrite`` is false.
        RuntimeError: The exported model answers something else; nothing is written.
    """
    exporter, config, runner = _load_exporter(format)
    is_folder = isinstance(model_or_directory, (str, os.PathLike))
    model: Any = load_compact(model_or_directory) if is_folder else model_or_directory  # type: ignore[arg-type]
    model.eval()
    with replacing_folder(Path(save_directory), overwrite=overwrite) as folder, _without_cache(model):
        exporter.export(model, make_probe(model), config=config).save_pretrained(folder)
        other = make_probe(model, batch_size=3, length=9)
        # The folder was written a moment ago by this process; transformers asks for trust before it unpickles a .pt2.
        exported = runner.from_pretrained(folder, trust_remote_code=True)
        difference = max_relative_difference(forward_outputs(model, other), _floating(exported(**other)))
        if difference > _TOLERANCE:
            raise RuntimeError(
                f"The exported model's outputs differ from the model's by {difference:.1e}, more than rounding. "
                "Nothing was written."
            )
        megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return RuntimeReport(Path(save_directory), format, difference, megabytes)


def export_onnx(
    model_or_directory: PreTrainedModel | str | os.PathLike[str],
    save_directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> RuntimeReport:
    """Export a model to ONNX: :func:`export_runtime` with that format."""
    return export_runtime(model_or_directory, save_directory, format="onnx", overwrite=overwrite)


def _load_exporter(format: RuntimeFormat) -> tuple[Any, Any, Any]:
    # Loaded by name: transformers' types do not tell what this package offers.
    exporters: Any = importlib.import_module("transformers.exporters")
    if format == "torch":
        return exporters.DynamoExporter(), exporters.DynamoConfig(dynamic=True), exporters.ExportedModel
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The package {error.name} is needed to export to ONNX: pip install 'head-gating[export]'"
        ) from error
    return exporters.OnnxExporter(), exporters.OnnxConfig(dynamic=True), exporters.ExportedModel


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Leave the cache of decoders out of a plain forward pass."""
    before = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = before


def _floating(outputs: Any) -> list[Tensor]:
    values = outputs.values() if hasattr(outputs, "values") else outputs
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
