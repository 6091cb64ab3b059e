"""The formats of exported models, one row each."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FORMATS", "ServingFormat", "ServingReport"]


@dataclass(frozen=True)
class ServingReport:
    """An export and the result of its check.

    Attributes:
        path: The file or folder.
        megabytes: Its size, in millions of bytes.
        sentences: Its contents and the result of the check, for people.
    """

    path: Path
    megabytes: float
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class ServingFormat:
    """A format of exported models.

    Attributes:
        summary: Its runtime and models, for ``--help``.
        exporter: Module and name of the function that exports a model, which is imported when it is used.
        ending: Ending of the default name: that of a file, or ``-NAME`` for a folder.
        options: Names of the function's options beside ``overwrite``.
    """

    summary: str
    exporter: str
    ending: str
    options: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        """Return the function ``(model_or_directory, path, *, overwrite, ...)`` that exports a model.

        It returns a :class:`ServingReport`.
        """
        module, _, name = self.exporter.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


FORMATS: Mapping[str, ServingFormat] = {
    "onnx": ServingFormat(
        "ONNX Runtime: one forward pass without a cache", "gating.serving.graphs.export:export_onnx", "-onnx", ("int8",)
    ),
    "torch": ServingFormat("torch.export", "gating.serving.graphs.export:export_torch", "-torch"),
    "gguf": ServingFormat(
        "llama.cpp: LLaMA, Mistral, Qwen2 and Qwen3",
        "gating.serving.gguf.export:export_gguf",
        ".gguf",
        ("dtype", "tokenizer_from", "pre_tokenizer"),
    ),
    "onnx-genai": ServingFormat(
        "ONNX Runtime GenAI: decoders with a cache", "gating.serving.genai:export_genai", "-onnx-genai", ("dtype",)
    ),
    "openvino": ServingFormat("OpenVINO", "gating.serving.openvino:export_openvino", "-openvino", ("dtype",)),
    "vllm": ServingFormat("vLLM: decoders with a head in every layer", "gating.serving.vllm:export_vllm", "-vllm"),
}
