"""Accuracy, size and speed of compact encoders in PyTorch, ONNX Runtime and OpenVINO."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from benchmarks.measuring import interleave, ratio
from benchmarks.serving.runs import ENCODERS, EXPORTS, train
from gating.compact.load import load_compact
from gating.serving.exporting import megabytes_of
from gating.serving.graphs.runtime import GraphModel

__all__ = ["graph", "measure_encoder", "pytorch"]

Row = dict[str, Any]
Batch = Mapping[str, Tensor]
Forward = Callable[[Batch], Any]

_SIZES = ((1, 128), (8, 128))
# Splits by their names in metrics.json.
_SPLITS = {"validation": "val", "test": "test"}


def measure_encoder(*, data: Path, runs: Path) -> Iterator[Row]:
    """Yield a row for each model and runtime, with accuracies, size, and speed-ups over the dense model.

    Accuracies are those that the run has measured of its exports.

    Args:
        data: Folder with the data.
        runs: Folder of the runs.
    """
    forwards: dict[str, Forward] = {}
    rows: list[Row] = []
    for name in ENCODERS:
        run = train(name, data=data, runs=runs)
        numbers = json.loads((run / "metrics.json").read_text())
        stage = "dense" if name == "dense" else "compact"
        for runtime, export in {"PyTorch": "", **EXPORTS}.items():
            place = run / f"compact-{export}" if export else run / "compact"
            found = {split: numbers[f"{export or stage}/{short}/accuracy"] for split, short in _SPLITS.items()}
            counts = {f"{split}_examples": numbers[f"num_examples/{short}"] for split, short in _SPLITS.items()}
            rows.append({"model": name, "runtime": runtime, "megabytes": megabytes_of(place), **found, **counts})
            forwards[f"{name} {runtime}"] = graph(place) if export else pytorch(load_compact(place).eval())
    speeds = _speeds(forwards)
    for row, key in zip(rows, forwards, strict=True):
        yield {**row, **speeds[key]}


def pytorch(model: PreTrainedModel) -> Forward:
    """Return the logits of a model as a function of a batch."""

    @torch.inference_mode()
    def forward(batch: Batch) -> Any:
        return model(**batch).logits.numpy()

    return forward


def graph(folder: Path) -> Forward:
    """Return the logits of an export, on one thread, as a function of a batch."""
    exported = GraphModel(AutoConfig.from_pretrained(folder), folder, num_threads=1)
    return lambda batch: exported(**batch).logits.numpy()


def _speeds(forwards: Mapping[str, Forward]) -> dict[str, Row]:
    """Time all models in all runtimes in turns, and return the speed-ups over the first, the dense one in PyTorch."""
    speeds: dict[str, Row] = {key: {} for key in forwards}
    for rows, length in _SIZES:
        tokens = torch.randint(5, 40, (rows, length), generator=torch.Generator().manual_seed(0))
        batch = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "token_type_ids": torch.zeros_like(tokens),
        }
        calls = {key: partial(forward, batch) for key, forward in forwards.items()}
        times = interleave(calls, rounds=15, warm_up=2, budget_s=120)
        for key in forwards:
            speeds[key][f"over_pytorch_{rows}x{length}"] = ratio(times, next(iter(forwards)), key)
    return speeds
