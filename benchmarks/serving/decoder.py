"""Perplexity, size and speed of compact LLaMAs in other runtimes, with weights of several types."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.measuring import ratio
from benchmarks.serving.models import make_case, make_for_speed
from benchmarks.serving.processes import ask_llama_cpp
from benchmarks.serving.runs import DECODERS, train
from benchmarks.serving.runtimes import RUNTIMES, missing_package, silenced
from gating.compact.load import load_compact
from gating.serving.formats import export_compact
from gating.serving.graphs.runtime import GraphModel

__all__ = ["measure_perplexity", "measure_speed"]

Row = dict[str, Any]

_LENGTH, _NUM_TEXTS = 128, 24
_GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
# Tokens of the prompt and those written after it, and measurements.
_PROMPT, _WRITTEN, _ROUNDS = 256, 32, 7


def measure_perplexity(*, data: Path | None, runs: Path | None, quick: bool = False) -> Iterator[Row]:
    """Yield a row for each trained model and type of its weights, with the perplexity on the same test text.

    Args:
        data: Folder with the data; None for untrained models.
        runs: Folder of the runs.
        quick: Whether the models are tiny and untrained.
    """
    for name in ("heads",) if quick else DECODERS:
        if quick:
            source: Any = make_case("LLaMA", "uneven", steps=2)
            texts = torch.randint(3, 260, (2, 20), generator=torch.Generator().manual_seed(0)).tolist()
        else:
            assert data is not None
            assert runs is not None
            source = train("decoder", name, data=data, runs=runs) / "compact"
            texts = _texts(source, data / "tinyshakespeare" / "test.txt")
        for row in _of_model(source, texts):
            yield {"model": name, **row}


def measure_speed(*, quick: bool = False) -> Iterator[Row]:
    """Yield a row for each type of weights, with speeds in llama.cpp as ratios to the dense model of the same type.

    Args:
        quick: Whether the models are tiny.
    """
    if missing_package(RUNTIMES["llama.cpp"]) is not None:
        return
    models = {
        "dense": make_for_speed(share=1, neurons=False, quick=quick),
        "heads": make_for_speed(share=0.5, neurons=False, quick=quick),
        "heads and neurons": make_for_speed(share=0.5, neurons=True, quick=quick),
    }
    prompt, written, rounds = (16, 8, 3) if quick else (_PROMPT, _WRITTEN, _ROUNDS)
    tokens = torch.randint(3, 200, (prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    for dtype in _GGUF_TYPES[1:2] if quick else _GGUF_TYPES[1:]:
        with tempfile.TemporaryDirectory(prefix="head-gating-serving-") as folder:
            files = {name: Path(folder) / f"{number}.gguf" for number, name in enumerate(models)}
            for name, model in models.items():
                _export(model, files[name], format="gguf", dtype=dtype)
            speeds = ask_llama_cpp(
                "time", list(files.values()), [tokens], context=2 * prompt, count=written, rounds=rounds, flash=True
            ).value
            sizes = {name: file.stat().st_size / 1e6 for name, file in files.items()}
        for number, name in enumerate(models):
            if number:
                ratios = {kind: _ratio(values, number) for kind, values in speeds.items()}
                about = {"model": name, "dtype": dtype, "prompt": prompt, "written": written}
                yield {**about, **ratios, "megabytes": sizes[name], "dense_megabytes": sizes["dense"]}


def _ratio(speeds: Sequence[Sequence[float]], number: int) -> tuple[float, float, float]:
    """Return the median ratio of the speed of a model to that of the first one, and its quartiles."""
    columns = {"own": [row[number] for row in speeds], "dense": [row[0] for row in speeds]}
    return ratio(columns, "own", "dense")


def _of_model(source: PreTrainedModel | Path, texts: list[list[int]]) -> Iterator[Row]:
    """Yield a row for each runtime and type of the weights."""
    model = source if isinstance(source, PreTrainedModel) else load_compact(source).eval()
    expected = _in_pytorch(model, texts)
    megabytes = sum(tensor.numel() * 4 for tensor in model.parameters()) / 1e6
    yield {"runtime": "PyTorch", "dtype": "f32", "megabytes": megabytes, **_describe(expected, expected)}
    with tempfile.TemporaryDirectory(prefix="head-gating-serving-") as folder:
        if missing_package(RUNTIMES["llama.cpp"]) is None:
            for dtype in _GGUF_TYPES:
                file = Path(folder) / f"{dtype}.gguf"
                report = _export(source, file, format="gguf", dtype=dtype)
                about = {"runtime": "llama.cpp", "dtype": dtype, "megabytes": report.megabytes}
                scores = ask_llama_cpp("score", [file], texts, context=2 * _LENGTH, exact_cache=True).value
                yield {**about, **_describe(_flat(scores), expected)}
                if dtype == "f16":
                    scores = ask_llama_cpp("score", [file], texts, context=2 * _LENGTH, flash=True).value
                    yield {**about, "dtype": "f16, cache too", **_describe(_flat(scores), expected)}
        for runtime, format in (("ONNX Runtime", "onnx"), ("OpenVINO", "openvino")):
            if missing_package(RUNTIMES[runtime]) is None:
                for dtype in ("f32", "int8"):
                    place = Path(folder) / f"{format}-{dtype}"
                    report = _export(source, place, format=format, int8=dtype == "int8")
                    about = {"runtime": runtime, "dtype": dtype, "megabytes": report.megabytes}
                    yield {**about, **_describe(_in_graph(model, place, texts), expected)}


def _export(source: PreTrainedModel | Path, place: Path, **options: Any) -> Any:
    with silenced():
        return export_compact(source, place, **options)


def _texts(folder: Path, file: Path) -> list[list[int]]:
    """Return texts of equal lengths in tokens, spread evenly over the test text."""
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(file.read_text(), add_special_tokens=False).ids
    starts = np.linspace(0, len(tokens) - _LENGTH, _NUM_TEXTS).astype(int)
    return [tokens[start : start + _LENGTH] for start in starts.tolist()]


@torch.inference_mode()
def _in_pytorch(model: PreTrainedModel, texts: list[list[int]]) -> list[float | None]:
    tokens = torch.tensor(texts)
    return _scores(model(input_ids=tokens, use_cache=False).logits, tokens)


def _in_graph(model: PreTrainedModel, folder: Path, texts: list[list[int]]) -> list[float | None]:
    tokens = torch.tensor(texts)
    return _scores(GraphModel(model.config, folder, num_threads=1)(input_ids=tokens).logits, tokens)


def _scores(logits: Tensor, tokens: Tensor) -> list[float | None]:
    scores = logits[:, :-1].double().log_softmax(-1)
    found: list[float | None] = scores.gather(-1, tokens[:, 1:, None]).flatten().tolist()
    return found


def _flat(scores: list[list[float | None]]) -> list[float | None]:
    return [score for text in scores for score in text]


def _describe(scores: Sequence[float | None], expected: Sequence[float | None]) -> Mapping[str, float | int]:
    """Return the perplexity, and that of PyTorch over the same tokens."""
    pairs = [(own, other) for own, other in zip(scores, expected, strict=True) if own is not None and other is not None]
    columns = [[pair[number] for pair in pairs] for number in (0, 1)]
    own, other = (math.exp(-math.fsum(column) / len(column)) for column in columns)
    return {"tokens": len(pairs), "perplexity": own, "perplexity_pytorch": other}
