"""Runtimes of decoders: how a model is exported for each, and the greedy tokens that the runtime writes."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from benchmarks.serving.processes import ask_llama_cpp
from gating.serving.formats import FORMATS, export_compact
from gating.serving.graphs.runtime import GraphModel

__all__ = ["RUNTIMES", "Runtime", "export", "missing_package", "silenced"]

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


def export(model: PreTrainedModel, runtime: Runtime, place: Path) -> Path:
    """Save a model for a runtime, and return the place.

    Raises:
        ValueError: The runtime has no such models.
    """
    with silenced():
        export_compact(model, place, format=runtime.format, **runtime.options)
    return place


def missing_package(runtime: Runtime) -> str | None:
    """Return the message on the package that an export lacks here; None if it lacks none."""
    try:
        FORMATS[runtime.format].check_packages()
    except ImportError as error:
        return str(error)
    return None


@contextmanager
def silenced() -> Iterator[None]:
    """Silence the progress, logs and warnings of exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


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
