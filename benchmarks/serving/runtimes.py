"""Runtimes of decoders: how a model is exported for each, and the greedy tokens that the runtime writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from benchmarks.serving.processes import ask_llama_cpp
from gating.serving.formats import check_packages
from gating.serving.graphs.runtime import GraphModel

__all__ = ["RUNTIMES", "Runtime", "missing_package"]

Tokens = list[list[int]]


@dataclass(frozen=True)
class Runtime:
    """A runtime and the format of its models.

    Attributes:
        format: Name of the format in ``head-gating export``.
        write: Function ``(path, prompts, count) -> tokens`` that writes greedily.
        options: Options of the export.
    """

    format: str
    write: Callable[[Path, Sequence[Sequence[int]], int], Tokens]
    options: Mapping[str, Any] = field(default_factory=dict)


def missing_package(runtime: Runtime) -> str | None:
    """Return the message on the package that an export lacks here; None if it lacks none."""
    try:
        check_packages(runtime.format)
    except ImportError as error:
        return str(error)
    return None


def _with_llama_cpp(file: Path, prompts: Sequence[Sequence[int]], count: int) -> Tokens:
    written: Tokens = ask_llama_cpp("write", [file], prompts, context=256, count=count, exact_cache=True).value
    return written


def _with_graph(folder: Path, prompts: Sequence[Sequence[int]], count: int) -> Tokens:
    graph = GraphModel(AutoConfig.from_pretrained(folder), folder, num_threads=1)
    return [graph.write([prompt], count, pad_token_id=0)[0] for prompt in prompts]


RUNTIMES: Mapping[str, Runtime] = {
    "llama.cpp": Runtime("gguf", _with_llama_cpp, {"dtype": "f32"}),
    "ONNX Runtime": Runtime("onnx", _with_graph),
    "OpenVINO": Runtime("openvino", _with_graph),
}
