"""The formats of exported models, one row each."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from gating.errors import InputError, MissingPackageError

# The table of formats is read by `--help`, which does not wait for torch and transformers.
if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ServingReport:
    """An export and the result of its check.

    Attributes:
        path: The file or folder.
        megabytes: Its size, in millions of bytes.
        sentences: Its contents and the result of the check, for people.
        inputs: Inputs of a graph with their axes, those of a cache left out: a name for a dynamic axis, a number for a
            fixed one.
        max_difference: Largest relative difference of a graph's outputs to the model's own, padding positions excluded;
            None for decoders, whose tokens are compared.
    """

    path: Path
    megabytes: float
    sentences: tuple[str, ...]
    inputs: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    max_difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class ServingFormat:
    """A format of exported models.

    Attributes:
        runtime: Name of its runtime.
        summary: Its runtime and models, for ``--help``.
        exporter: Module and name of the function that exports a model, which is imported when it is used.
        check: Module and name of the function that raises for models that the runtime does not run; empty if it runs
            all.
        ending: Ending of the default name of a file; the name of a folder ends with that of the format.
        options: Names of the function's options beside ``overwrite``.
        packages: Packages that the export needs, which are in the extra with the name of the format.
    """

    runtime: str
    summary: str
    exporter: str
    check: str = ""
    ending: str = ""
    options: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def reason_against(self, model: "PreTrainedModel") -> str:
        """Return the reason for which the runtime does not run a model, as a sentence; an empty one if it does."""
        try:
            if self.check:
                resolve_name(self.check)(model)
        except InputError as error:
            return str(error)
        return ""


FORMATS: Mapping[str, ServingFormat] = {
    "onnx": ServingFormat(
        runtime="ONNX Runtime",
        summary="ONNX Runtime, decoders with a cache",
        exporter="gating.serving.graphs.graph_export:export_onnx",
        options=("int8",),
        packages=("onnx", "onnxscript", "onnxruntime", "transformers.exporters"),
    ),
    "openvino": ServingFormat(
        runtime="OpenVINO",
        summary="OpenVINO, decoders with a cache",
        exporter="gating.serving.graphs.graph_export:export_openvino",
        options=("int8",),
        packages=("openvino", "nncf", "transformers.exporters"),
    ),
    "gguf": ServingFormat(
        runtime="llama.cpp",
        summary="llama.cpp, decoders of LLaMA, Mistral, Qwen2 and Qwen3",
        exporter="gating.serving.gguf.gguf_export:export_gguf",
        check="gating.serving.gguf.architectures:find_architecture",
        ending=".gguf",
        options=("dtype", "tokenizer_from", "pre_tokenizer"),
        packages=("gguf",),
    ),
    "vllm": ServingFormat(
        runtime="vLLM",
        summary="vLLM, decoders",
        exporter="gating.serving.vllm:export_vllm",
        check="gating.serving.vllm:check_vllm",
    ),
}


def check_packages(format: str) -> None:
    """Raise ``ImportError`` with the extra to install if a package for a format is missing."""
    for package in FORMATS[format].packages:
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(f"The package {package} is needed: pip install 'head-gating[{format}]'")


def export_compact(
    model_or_directory: "PreTrainedModel | str | os.PathLike[str]",
    save_path: str | os.PathLike[str],
    *,
    format: str,
    overwrite: bool = False,
    **options: Any,
) -> Any:
    """Export a model for another runtime, and check it there.

    Args:
        model_or_directory: A compact model, its folder, or its name on the hub.
        save_path: File or folder for the export; it is written whole or not at all.
        format: ``onnx``, ``openvino``, ``gguf`` or ``vllm``.
        overwrite: Whether an earlier file or folder may be renamed.
        **options: Options of the format, such as ``dtype`` or ``int8``; None for its default.

    Returns:
        A report with ``path``, ``megabytes``, and ``sentences`` on the contents and the check.

    Raises:
        ImportError: A package for the export is not installed.
        TypeError: The model is not one of transformers.
        ValueError: The format or the option is unknown, the model is not ready to be exported, or the runtime has no
            such models.
        FileExistsError: The path exists and ``overwrite`` is false.
        RuntimeError: The runtime gives other results. Nothing is written, as after an error of an exporter.
    """
    if format not in FORMATS:
        raise InputError(f"format={format!r} is not a format of exports: give one of {', '.join(FORMATS)}.")
    row = FORMATS[format]
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    for name in given.keys() - set(row.options):
        raise InputError(f"format={format!r} has no option {name}: leave it out.")
    check_packages(format)
    return resolve_name(row.exporter)(model_or_directory, save_path, overwrite=overwrite, **given)
