"""The exporters of transformers, one row for each format of graphs."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gating.serving.folder_export import export_kind
from gating.serving.opening import require
from gating.storage.tables import read_table

__all__ = ["EXPORT", "EXPORTERS", "GraphExporter", "GraphFormat", "of_transformers"]

GraphFormat = Literal["onnx", "torch"]
# Names of the formats in the ``export.json`` of transformers.
_NAMES = ("onnx", "dynamo")


def of_transformers() -> Any:
    """Return the package ``transformers.exporters``, which the type stubs of transformers lack."""
    return importlib.import_module("transformers.exporters")


class GraphExporter(NamedTuple):
    """An exporter of transformers.

    Attributes:
        exporter: Name of its class in ``transformers.exporters``.
        config: Name of the class of its configuration.
        input_axes: Function that returns the shape of each input of a loaded export; only fixed sizes are integers.
        packages: Packages that it needs, all in the extra ``export`` of this package.
    """

    exporter: str
    config: str
    input_axes: Callable[[Any], dict[str, tuple[object, ...]]]
    packages: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        """Return the function that exports a model with a batch.

        Raises:
            ImportError: A package is not installed.
        """
        exporters = of_transformers()
        for package in self.packages:
            require(package, target="ONNX", extra="export")
        return partial(getattr(exporters, self.exporter)().export, config=getattr(exporters, self.config)(dynamic=True))


def _onnx_axes(exported: Any) -> dict[str, tuple[object, ...]]:
    (runner,) = exported.runners.values()
    return {given.name: tuple(given.shape) for given in runner.session.get_inputs()}


def _torch_axes(exported: Any) -> dict[str, tuple[object, ...]]:
    names = exported.program.graph_signature.user_inputs
    return {node.name: tuple(node.meta["val"].shape) for node in exported.program.graph.nodes if node.name in names}


EXPORTERS: Mapping[GraphFormat, GraphExporter] = {
    "onnx": GraphExporter("OnnxExporter", "OnnxConfig", _onnx_axes, ("onnxruntime", "onnxscript")),
    "torch": GraphExporter("DynamoExporter", "DynamoConfig", _torch_axes),
}


def _is_export(folder: Path) -> bool:
    described = read_table(folder / "export.json")
    return described.get("export_format") in _NAMES and isinstance(described.get("components"), dict)


EXPORT = export_kind(_is_export)
