"""Size of the key-value cache of compact decoders in each runtime, beside that of the dense one."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.serving.models import CACHE_PATTERNS, make_for_cache
from benchmarks.serving.processes import ask_llama_cpp
from benchmarks.serving.runtimes import RUNTIMES, missing_package
from gating.serving.formats import export_compact

__all__ = ["bytes_in_transformers", "measure_cache"]

Row = dict[str, Any]

_SIZE = re.compile(r"llama_kv_cache: size = +([\d.]+) MiB \( *(\d+) cells")
_LENGTH = 20
# Tokens whose cache is 20 MiB and more, since llama.cpp rounds to hundredths.
_CONTEXT = 8192


def measure_cache(*, quick: bool = False) -> Iterator[Row]:
    """Yield a row for each share of the groups, pattern and runtime, with bytes of the cache for each token.

    Args:
        quick: Whether few cases are measured.
    """
    dense = dict(_bytes_per_token(make_for_cache("dense", share=1.0, context=_CONTEXT)))
    for pattern in CACHE_PATTERNS[1:2] if quick else CACHE_PATTERNS:
        for runtime, size in _bytes_per_token(make_for_cache(pattern, share=0.5, context=_CONTEXT)):
            about = {"runtime": runtime, "kept": 0.5, "pattern": pattern}
            yield {**about, "bytes": size, "dense_bytes": dense[runtime], "share": size / dense[runtime]}


def _bytes_per_token(model: PreTrainedModel) -> Iterator[tuple[str, float]]:
    """Yield runtimes with the bytes of their cache for each token."""
    yield "transformers", bytes_in_transformers(model)
    with tempfile.TemporaryDirectory(prefix="head-gating-serving-") as folder:
        if missing_package(RUNTIMES["llama.cpp"]) is None:
            file = export_compact(model, Path(folder) / "model.gguf", format="gguf", dtype="f32").path
            for flash in (True, False):
                name = f"llama.cpp, flash attention {'on' if flash else 'off'}"
                yield name, _in_llama_cpp(file, flash=flash)
        if missing_package(RUNTIMES["ONNX Runtime"]) is None:
            place = export_compact(model, Path(folder) / "onnx", format="onnx").path
            yield "ONNX Runtime, OpenVINO", _in_onnx_runtime(place)


@torch.inference_mode()
def bytes_in_transformers(model: PreTrainedModel) -> float:
    """Return the bytes of a model's cache for each token, counted in its tensors after a text was read."""
    cache = model(torch.ones(1, _LENGTH, dtype=torch.long), use_cache=True).past_key_values
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / _LENGTH


def _in_llama_cpp(file: Path, *, flash: bool) -> float:
    """Read the size of the cache from the log."""
    log = ask_llama_cpp("load", [file], context=_CONTEXT, flash=flash).log
    # An earlier line is of an estimate, which may be of a smaller context.
    mebibytes, cells = _SIZE.findall(log)[-1]
    return float(mebibytes) * 2**20 / int(cells)


def _in_onnx_runtime(folder: Path) -> float:
    """Count the entries of the cache by the shapes of the graph's inputs: batch, groups, length and width of a head."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    shapes = [each.shape for each in session.get_inputs() if each.name.startswith("input.")]
    return float(sum(4 * int(shape[1]) * int(shape[3]) for shape in shapes))
