"""Runtimes of decoders: how a model is exported for each, and the greedy tokens that the runtime writes."""

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from benchmarks.serving.processes import ask_llama_cpp
from gating.errors import InputError, MissingPackageError
from gating.serving.formats import FORMATS, export_compact

__all__ = ["RUNTIMES", "Runtime", "compile_openvino", "export", "missing_package", "silenced"]

Tokens = list[list[int]]


@dataclass(frozen=True)
class Runtime:
    """A runtime and the format of its models.

    Attributes:
        format: Name of the format in ``head-gating export``.
        write: Function ``(path, prompts, count) -> tokens`` that writes greedily.
        options: Options of the export.
        patterns: Patterns of removed units to measure; all if None.
    """

    format: str
    write: Callable[[Path, Sequence[Sequence[int]], int], Tokens]
    options: Mapping[str, Any] = field(default_factory=dict)
    patterns: tuple[str, ...] | None = None


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
        FORMATS[runtime.format].load()
    except (MissingPackageError, ImportError, InputError) as error:
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


def _with_genai(folder: Path, prompts: Sequence[Sequence[int]], count: int) -> Tokens:
    genai = importlib.import_module("onnxruntime_genai")
    model, written = genai.Model(str(folder)), []
    for prompt in prompts:
        parameters = genai.GeneratorParams(model)
        # A text shorter than this has no end.
        length = len(prompt) + count
        parameters.set_search_options(min_length=length, max_length=length, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array([prompt], dtype=np.int32))
        tokens: list[int] = []
        while not generator.is_done():
            generator.generate_next_token()
            tokens += generator.get_next_tokens().tolist()
        written.append(tokens)
    return written


def _with_onnx_runtime(folder: Path, prompts: Sequence[Sequence[int]], count: int) -> Tokens:
    session = importlib.import_module("onnxruntime").InferenceSession(str(folder / "model.onnx"))
    names = [each.name for each in session.get_inputs()]
    return [_without_cache(lambda batch: session.run(None, batch)[0], names, prompt, count) for prompt in prompts]


def _with_openvino(folder: Path, prompts: Sequence[Sequence[int]], count: int) -> Tokens:
    model = compile_openvino(folder, exact=True)
    names = {port.any_name for port in model.inputs}
    written = []
    for prompt in prompts:
        request, text, step = model.create_infer_request(), list(prompt), list(prompt)
        for _ in range(count):
            positions = np.arange(len(text) - len(step), len(text), dtype=np.int64)[None]
            values = {
                "input_ids": np.array([step], dtype=np.int64),
                "attention_mask": np.ones((1, len(text)), dtype=np.int64),
                "position_ids": positions,
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
            logits = request.infer({name: value for name, value in values.items() if name in names})["logits"]
            step = [int(logits[0, -1].argmax())]
            text += step
        written.append(text[len(prompt) :])
    return written


def compile_openvino(folder: Path, *, exact: bool) -> Any:
    """Load a model of OpenVINO on one thread of the CPU.

    Args:
        folder: Folder of the export.
        exact: Whether values and the cache are in single precision, as they are not on every processor by default.
    """
    openvino = importlib.import_module("openvino")
    precise = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"} if exact else {}
    settings = {"INFERENCE_NUM_THREADS": 1, **precise}
    return openvino.Core().compile_model(str(folder / "openvino_model.xml"), "CPU", settings)


def _without_cache(
    forward: Callable[[dict[str, Any]], Any], names: Sequence[str], prompt: Sequence[int], count: int
) -> list[int]:
    """Return greedy tokens of a graph that reads the whole text in each step."""
    text = list(prompt)
    for _ in range(count):
        tokens = np.array([text], dtype=np.int64)
        values = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(len(text), dtype=np.int64)[None],
        }
        text.append(int(forward({name: values[name] for name in names})[0, -1].argmax()))
    return text[len(prompt) :]


RUNTIMES: Mapping[str, Runtime] = {
    "llama.cpp": Runtime("gguf", _with_llama_cpp, {"dtype": "f32"}),
    "ONNX Runtime GenAI": Runtime("onnx-genai", _with_genai),
    # Tracing takes about a minute for each model.
    "ONNX Runtime": Runtime("onnx", _with_onnx_runtime, patterns=("emptied",)),
    "OpenVINO": Runtime("openvino", _with_openvino),
}
