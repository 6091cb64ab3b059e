"""Accuracy, size and speed of compact encoders in PyTorch, ONNX Runtime and OpenVINO."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, PreTrainedModel

import gating
from benchmarks.measuring import interleave, ratio
from benchmarks.serving.runs import ENCODERS, train
from benchmarks.serving.runtimes import RUNTIMES, missing_package, silenced
from gating.commands.evaluate import evaluation_settings
from gating.compact.load import load_compact
from gating.models.pretrained import Pretrained
from gating.run.build import build_objects
from gating.run.data import RunData, encode_examples, load_examples
from gating.serving.formats import export_compact
from gating.serving.graphs.runtime import GraphModel

__all__ = ["accuracies", "evaluation_data", "graph", "measure_encoder", "pytorch"]

Row = dict[str, Any]
Batch = Mapping[str, Tensor]
Forward = Callable[[Batch], Any]

_SIZES = ((1, 128), (8, 128))
# Runtime -> format of the export and its options.
_EXPORTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ONNX Runtime": ("onnx", {}),
    "ONNX Runtime, int8": ("onnx", {"int8": True}),
    "OpenVINO": ("openvino", {}),
    "OpenVINO, int8": ("openvino", {"int8": True}),
}


class _Exported(NamedTuple):
    """A model in a runtime, and its size in millions of bytes."""

    forward: Forward
    megabytes: float


def measure_encoder(*, data: Path | None, runs: Path | None, quick: bool = False) -> Iterator[Row]:
    """Yield a row for each model and runtime, with accuracies, size, and speed-ups over the dense model.

    Args:
        data: Folder with the data; None for untrained models.
        runs: Folder of the runs.
        quick: Whether the models are tiny and untrained.
    """
    with tempfile.TemporaryDirectory(prefix="head-gating-serving-") as folder:
        loaded: dict[tuple[str, str], _Exported] = {}
        scores: dict[tuple[str, str], Row] = {}
        for name in ("dense",) if quick else ENCODERS:
            if quick:
                source: PreTrainedModel | Path = _tiny()
            else:
                assert data is not None
                assert runs is not None
                source = train(name, data=data, runs=runs)
            for runtime, exported in _in_runtimes(source, Path(folder) / name.replace(" ", "-"), quick=quick):
                loaded[name, runtime] = exported
                run = source if isinstance(source, Path) else None
                scores[name, runtime] = accuracies(evaluation_data(run), exported.forward) if run else {}
        speeds = _speeds({key: exported.forward for key, exported in loaded.items()}, quick=quick)
    for (name, runtime), exported in loaded.items():
        about = {"model": name, "runtime": runtime, "megabytes": exported.megabytes}
        yield {**about, **scores[name, runtime], **speeds[name, runtime]}


def _in_runtimes(source: PreTrainedModel | Path, place: Path, *, quick: bool) -> Iterator[tuple[str, _Exported]]:
    """Yield the runtimes that are installed, each with the model."""
    compact = source if isinstance(source, PreTrainedModel) else source / "compact"
    model = compact if isinstance(compact, PreTrainedModel) else load_compact(compact).eval()
    megabytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()) / 1e6
    yield "PyTorch", _Exported(pytorch(model), megabytes)
    for runtime, (format, options) in _EXPORTS.items():
        # Tracing takes most of the time, and int8 begins with that of floats.
        if (
            not (quick and runtime == "ONNX Runtime")
            and missing_package(next(row for row in RUNTIMES.values() if row.format == format)) is None
        ):
            folder = place.with_name(f"{place.name}-{format}{len(options)}")
            with silenced():
                report = export_compact(compact, folder, format=format, **options)
            yield runtime, _Exported(graph(folder), report.megabytes)


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


def evaluation_data(run: Path) -> RunData:
    """Return the encoded data of a run."""
    settings = evaluation_settings(str(run / "compact"), [], run_folder=run, split=None)
    objects = replace(build_objects(settings), source=Pretrained(str(run / "compact")))
    model = load_compact(run / "compact")
    return encode_examples(load_examples(settings, objects), settings, objects, model)


def accuracies(encoded: RunData, forward: Forward) -> Row:
    """Return the shares of validation and test examples whose class is right."""
    found: Row = {}
    for split in ("validation", "test"):
        batches = islice(encoded.module.evaluation_dataloader(split), encoded.num_evaluated[split])
        found[split], found[f"{split}_examples"] = _accuracy(batches, forward)
    return found


def _accuracy(batches: Iterable[Any], forward: Forward) -> tuple[float, int]:
    right = total = 0
    for batch in batches:
        inputs = {
            name: value for name, value in batch.items() if name in ("input_ids", "attention_mask", "token_type_ids")
        }
        right += int((np.asarray(forward(inputs)).argmax(-1) == batch["labels"].numpy()).sum())
        total += len(batch["labels"])
    return right / total, total


def _speeds(forwards: Mapping[tuple[str, str], Forward], *, quick: bool) -> dict[tuple[str, str], Row]:
    """Time all models in all runtimes in turns, and return the speed-ups over the dense model in PyTorch."""
    speeds: dict[tuple[str, str], Row] = {key: {} for key in forwards}
    for rows, length in ((1, 8),) if quick else _SIZES:
        tokens = torch.randint(5, 40, (rows, length), generator=torch.Generator().manual_seed(0))
        batch = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "token_type_ids": torch.zeros_like(tokens),
        }
        calls = {str(key): partial(forward, batch) for key, forward in forwards.items()}
        times = interleave(calls, rounds=3 if quick else 15, warm_up=1 if quick else 2, budget_s=120)
        for name, runtime in forwards:
            own, dense = str((name, runtime)), str(("dense", "PyTorch"))
            speeds[name, runtime][f"over_pytorch_{rows}x{length}"] = ratio(times, dense, own)
    return speeds


def _tiny() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=45, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    model = BertForSequenceClassification(config).eval()
    gating.prune_heads(model, {0: [1], 1: [0, 2, 3]})
    return model
