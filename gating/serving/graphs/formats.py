"""The formats of exported models, one row each."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gating.errors import MissingPackageError
from gating.storage.results import ResultKind
from gating.storage.tables import read_table

__all__ = ["EXPORT", "FORMATS", "ExportFormat", "RuntimeFormat"]

RuntimeFormat = Literal["onnx", "torch"]


@dataclass(frozen=True)
class ExportFormat:
    """A format and its exporter in transformers.

    Attributes:
        exporter: Name of the exporter in ``transformers.exporters``.
        config: Name of the exporter's configuration class.
        export_format: Name of the format in the ``export.json`` of transformers.
        endings: File endings of a graph.
        input_axes: Function that returns the shape of each input of a loaded export; only fixed sizes are integers.
        packages: Packages that the format needs, all in the extra ``export`` of this package.
    """

    exporter: str
    config: str
    export_format: str
    endings: tuple[str, ...]
    input_axes: Callable[[Any], dict[str, tuple[object, ...]]]
    packages: tuple[str, ...] = ()

    def load_exporter(self) -> Callable[..., Any]:
        """Return the function that exports a model with a batch.

        Raises:
            ImportError: A package for the format is not installed.
        """
        # Imported by name: the type stubs of transformers lack this package.
        exporters: Any = importlib.import_module("transformers.exporters")
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise MissingPackageError(
                    f"The package {error.name} is needed to export to ONNX: pip install 'head-gating[export]'"
                ) from error
        return partial(getattr(exporters, self.exporter)().export, config=getattr(exporters, self.config)(dynamic=True))


def _onnx_axes(exported: Any) -> dict[str, tuple[object, ...]]:
    (runner,) = exported.runners.values()
    return {given.name: tuple(given.shape) for given in runner.session.get_inputs()}


def _torch_axes(exported: Any) -> dict[str, tuple[object, ...]]:
    names = exported.program.graph_signature.user_inputs
    return {node.name: tuple(node.meta["val"].shape) for node in exported.program.graph.nodes if node.name in names}


FORMATS: Mapping[RuntimeFormat, ExportFormat] = {
    "onnx": ExportFormat(
        "OnnxExporter", "OnnxConfig", "onnx", (".onnx", ".onnx.data"), _onnx_axes, ("onnxruntime", "onnxscript")
    ),
    "torch": ExportFormat("DynamoExporter", "DynamoConfig", "dynamo", (".pt2",), _torch_axes),
}


def _own_files(folder: Path) -> frozenset[str] | None:
    described = read_table(folder / "export.json")
    components, known = described.get("components"), {row.export_format for row in FORMATS.values()}
    if described.get("export_format") not in known or not isinstance(components, dict):
        return None
    endings = [ending for row in FORMATS.values() for ending in row.endings]
    return frozenset({"export.json", *(f"{name}{ending}" for name in components for ending in endings)})


EXPORT = ResultKind("export", _own_files, in_command="--overwrite")
