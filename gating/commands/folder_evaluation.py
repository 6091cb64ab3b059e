"""Evaluation of a model in a folder, with the settings of the run that made it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from huggingface_hub import snapshot_download
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from gating.commands.evaluation_settings import evaluation_settings
from gating.commands.model_folder import find_model
from gating.compact.load import load_compact
from gating.compact.original import read_original
from gating.data.labels import using_classes
from gating.distributed.launch import check_devices
from gating.errors import InputError
from gating.models.hub import locate
from gating.models.pretrained import Pretrained
from gating.pruning.compact_model import build_original
from gating.pruning.latency.comparison import margin
from gating.report.score import Score
from gating.report.summary import Stage, Summary
from gating.run.folder.inputs import data_difference, describe_inputs, read_inputs
from gating.run.latency import RunTiming
from gating.run.objects import RunObjects, build_objects
from gating.run.prepare import encode_examples, load_examples
from gating.run.run import RunData
from gating.run.settings.names import naming_settings
from gating.run.settings.settings import Settings
from gating.storage.identity import NUM_ROWS
from gating.storage.tables import finite_number
from gating.tasks.metrics.choice import score_of
from gating.tracking.verbosity import quiet_libraries
from gating.training.callbacks.progress import watched
from gating.training.evaluation import Tally, evaluate

__all__ = ["Evaluated", "check_task", "encode_split", "evaluate_folder", "limit_of"]

_log = logging.getLogger(__name__)

_PREFIX = {"validation": "val", "test": "test"}


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of a model.

    Attributes:
        model: Folder or name of the model.
        split: The split.
        num_examples: Number of its examples that were evaluated.
        limit: The setting by which others were left out, such as ``trainer.limit_test_batches=2``; None if none were.
        score: The metric to report.
        formats: Formats of the metrics by name.
        summary: Metrics, sizes and latency, of the model and the dense one that it was made from.
        is_compact: Whether heads or neurons were removed.
        device: Device of the latency.
    """

    model: str
    split: str
    num_examples: int
    limit: str | None
    score: Score
    formats: Mapping[str, Score]
    summary: Summary
    is_compact: bool
    device: str

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics by name."""
        values = self.summary.metrics[Stage.COMPACT]
        return {name.partition("/")[2]: value for name, value in values.items()}

    def to_json(self) -> dict[str, Any]:
        """Return everything by the names in ``metrics.json``; NaN is None."""
        numbers = {name: value for name, value in self.summary.flat().items() if "/" not in name}
        if not self.is_compact:
            numbers = {n: v for n, v in numbers.items() if not n.endswith("_before") and not n.startswith("speedup")}
        return {
            "model": self.model,
            "split": self.split,
            "num_examples": self.num_examples,
            "limit": self.limit,
            "metric": self.score.name,
            "metrics": {name: finite_number(value) for name, value in self.metrics.items()},
            **{name: finite_number(value) for name, value in numbers.items()},
            **self.summary.timed_batches(),
            "device": self.device,
            "threads": torch.get_num_threads(),
        }

    def to_text(self) -> str:
        """Return the metrics and sizes as lines."""
        part = "" if self.limit is None else f", a part of them by {self.limit}"
        lines = [f"{self.model} on {self.num_examples:,} {self.split} examples{part} ({self.device}):"]
        for name, value in sorted(self.metrics.items(), key=lambda item: item[0] != self.score.name):
            shown = self.formats[name].show_measured(value) if name in self.formats else f"{value:.4f}"
            lines.append(f"  {name}  {shown}")
        for row in self.summary.compact_report(self.score).rows:
            before = f" (dense: {row.before})" if self.is_compact else ""
            lines.append(f"  {row.name}  {row.after}{before}")
        lines += [
            f"  speed-up, {times.words}  {times.speedup:.2f}x ({margin(times.error)})"
            for times in self.summary.latencies
            if self.is_compact
        ]
        return "\n".join(lines)


def evaluate_folder(folder: str, overrides: Sequence[str], *, split: str | None = None) -> Evaluated:
    """Evaluate a model on a data set.

    Args:
        folder: Folder of a model or of a finished run, or a name on the hub.
        overrides: Settings of data, task, trainer and seed, in the words of Hydra.
        split: ``validation`` or ``test``; test if the data has one if None.

    Raises:
        InputError: The model, the data and the settings do not fit each other.
    """
    quiet_libraries()
    place, run_folder = find_model(folder)
    settings, only = evaluation_settings(str(place or folder), overrides, run_folder=run_folder, split=split)
    # Data that the command gives may differ from the run's.
    own = run_folder if not any(override.lstrip("+~").startswith("data") for override in overrides) else None
    with naming_settings(OmegaConf.create(settings.values)):
        return _evaluate(folder, place, settings, split=split, only=only, run_folder=own)


def _evaluate(
    folder: str,
    place: Path | None,
    settings: Settings,
    *,
    split: str | None,
    only: str | None,
    run_folder: Path | None,
) -> Evaluated:
    """Evaluate a model; see :func:`evaluate_folder` and :func:`encode_split`."""
    device = check_devices(settings.values["trainer"]).root
    objects = build_objects(settings)
    place = place or _download(folder)
    # The processor is beside the weights.
    objects = replace(objects, source=Pretrained(str(place)))
    model = load_compact(place)
    check_task(model, objects, folder)
    data, split = encode_split(settings, objects, model, split=split, only=only, folder=folder)
    if run_folder is not None:
        _warn_of_changes(run_folder, settings, data, split=split)
    timing = RunTiming.of(objects.latency, data.module, split=split)
    timing.check(model)
    model.to(device)  # type: ignore[arg-type]
    summary, prepared = Summary(), data.prepared
    score = prepared.final_score or prepared.score
    loader = islice(data.module.evaluation_dataloader(split), data.num_evaluated[split])
    batches = watched(loader, title=f"evaluating: {split}", total=data.num_evaluated[split])
    tally = Tally(prepared.all_metrics, None, device=device)
    with summary.timed("evaluate"):
        values = evaluate(model, tally.watch(batches), task=objects.task, metrics=prepared.all_metrics)
    summary.add_metrics(Stage.COMPACT, "model", split, values)
    original = read_original(model, place)
    dense = model if original is None else build_original(model, original, device=device)
    summary.compare_models(dense, model, timing.batch(device))
    summary.latency, summary.short_latency = timing.compare(dense, model, run_seconds=summary.seconds["evaluate"])
    return Evaluated(
        model=folder,
        split=split,
        num_examples=tally.count()[0],
        limit=limit_of(settings, data, split),
        score=score,
        formats={name: score_of(name, metric) for name, metric in prepared.all_metrics.items()} | {score.name: score},
        summary=summary,
        is_compact=any(before != after for before, after in summary.sizes.values()),
        device=str(device),
    )


def _warn_of_changes(run_folder: Path, settings: Settings, data: RunData, *, split: str) -> None:
    """Warn if a split has changed since the run that made the model."""
    before = read_inputs(run_folder)
    if before is None:
        return
    table = data.prepared.splits[split]
    rows = before["data"].get(split, {}).get(NUM_ROWS, len(table))
    places = {"data": settings.values["data"]}
    now = describe_inputs(places, {split: table}, num_rows={split: rows}, classes=None)
    changed = data_difference(before, now, split=split)
    if changed is not None:
        _log.warning(f"The data differ from those of the run in {run_folder}: {changed}.")


def _download(name: str) -> Path:
    """Return the folder of a model on the hub, or in the local cache."""
    located = locate(name)
    return Path(located if Path(located).is_dir() else snapshot_download(located))


def check_task(model: PreTrainedModel, objects: RunObjects, folder: str) -> None:
    """Check that the class of a model is one of the task."""
    families = getattr(objects.task.auto_class, "_model_mapping", None)
    if families is None:
        return
    kinds = families.get(type(model.config), ())
    if not isinstance(model, kinds):
        dense = getattr(type(model), "dense_class", type(model)).__name__
        raise InputError(
            f"{folder} is a {dense}, which is not a model of {type(objects.task).__name__}: choose its task with "
            "task=..., such as task=token_classification."
        )


def encode_split(
    settings: Settings, objects: RunObjects, model: PreTrainedModel, *, split: str | None, only: str | None, folder: str
) -> tuple[RunData, str]:
    """Encode the split to evaluate on, with the classes of the model; return it with its name.

    Args:
        settings: The settings.
        objects: Objects of the settings.
        model: The model.
        split: Name of the split; None for the last one.
        only: Name of the only split of the data, which the source returns as ``train``; None if it returns all.
        folder: Folder of the model, for messages.
    """
    # A single file of texts is read as two splits.
    with _without_warnings("gating.data.tables") if only else nullcontext():
        examples = load_examples(settings, objects.task, hold_out_missing=only is None)
    tables = {only: examples.splits["train"]} if only else dict(examples.splits)
    split = split or ("test" if "test" in tables else "validation")
    if split not in tables:
        raise InputError(f"The data has no {split} examples: give data.{split}=..., or another --split.")
    classes = _classes_of(model)
    # Tasks read the columns of the training data; errors name the split that is checked first.
    both = replace(examples, splits=DatasetDict({split: tables[split], "train": tables[split]}))
    with using_classes(classes), _without_warnings("gating.data.rows"):
        data = encode_examples(both, settings, objects, model)
    num_labels = data.prepared.config.get("num_labels", model.config.num_labels)
    if num_labels != model.config.num_labels:
        raise InputError(
            f"The {split} data has {num_labels} classes, and {folder} has {model.config.num_labels} without names: "
            "evaluate it on data with as many."
        )
    if not data.num_evaluated[split]:
        raise InputError(f"trainer.limit_{_PREFIX[split]}_batches=0 leaves nothing to evaluate.")
    return data, split


def limit_of(settings: Settings, data: RunData, split: str) -> str | None:
    """Return the setting by which a part of a split is evaluated; None if all of it is."""
    name = f"limit_{_PREFIX[split]}_batches"
    return f"trainer.{name}={settings.values['trainer'][name]}" if data.is_part(split) else None


def _classes_of(model: PreTrainedModel) -> list[str] | None:
    """Return the names of a model's classes; None if it has the default names or no classes."""
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    return None if names == [f"LABEL_{number}" for number in range(len(names))] else names


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    """Silence the warnings of a logger in a ``with`` block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
