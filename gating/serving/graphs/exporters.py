"""The exporters of transformers for graphs, and the inputs of what they have exported."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

__all__ = ["GraphFormat", "exporter_of", "input_axes", "of_transformers"]

GraphFormat = Literal["onnx", "torch"]
# Names of the formats in transformers.
_NAMES: Mapping[GraphFormat, str] = {"onnx": "onnx", "torch": "dynamo"}


def of_transformers() -> Any:
    """Return the package ``transformers.exporters``, which the type stubs of transformers lack."""
    return importlib.import_module("transformers.exporters")


def exporter_of(format: GraphFormat) -> Callable[..., Any]:
    """Return the function that exports a model with a batch, to a graph for batches of any size."""
    exporters = of_transformers()
    config = exporters.AutoExportConfig.from_dict({"export_format": _NAMES[format], "dynamic": True})
    return partial(exporters.AutoHfExporter.from_config(config).export, config=config)


def input_axes(exported: Any, format: GraphFormat) -> dict[str, tuple[object, ...]]:
    """Return the shape of each input of a loaded export; only fixed sizes are integers."""
    if format == "onnx":
        (runner,) = exported.runners.values()
        return {given.name: tuple(given.shape) for given in runner.session.get_inputs()}
    names = exported.program.graph_signature.user_inputs
    return {node.name: tuple(node.meta["val"].shape) for node in exported.program.graph.nodes if node.name in names}
