"""``head-gating evaluate FOLDER``: the metrics, sizes and latency of a model on a data set."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from gating.commands.evaluated_data import limit_of, load_evaluation, warn_of_changes
from gating.commands.evaluation_settings import PLACES, evaluation_settings
from gating.commands.model_folder import find_model
from gating.compact.original import read_original
from gating.distributed.launch import check_devices
from gating.models.hub import locate
from gating.pruning.latency.comparison import margin
from gating.pruning.layers import build_original
from gating.report.score import Score
from gating.report.summary import Stage, Summary
from gating.run.build import build_objects, naming_settings
from gating.run.timing import RunTiming
from gating.storage.files import finite_number
from gating.tasks.metrics.choice import score_of
from gating.tracking.verbosity import quiet_libraries

__all__ = ["Evaluated", "evaluate_folder", "run"]

# Settings of data that do not change how its texts are encoded.
_SAME_ENCODING = ("data.batch_size", "data.eval_batch_size", "data.num_workers", "data.seed")


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a model, and print its metrics.

    Raises:
        InputError: The model, the data and the settings do not fit each other.
    """
    # Other output, such as how data was divided, is not part of the JSON.
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        evaluated = evaluate_folder(arguments.folder, arguments.settings, split=arguments.split)
    print(json.dumps(evaluated.to_json(), indent=2) if arguments.json else evaluated.to_text())


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
            for times in self.summary.latencies.values()
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
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    with naming_settings(settings.values):
        device = check_devices(settings.values["trainer"]).root
        # Wrong settings are refused before anything is downloaded.
        objects = build_objects(settings)
        place = place or _download(folder)
        objects, model, data, split = load_evaluation(settings, objects, place, split=split, only=only, folder=folder)
        # Data from another place may differ from the run's.
        if run_folder is not None and given.isdisjoint({"data", *(f"data.{name}" for name in PLACES)}):
            is_encoded_alike = not any(name.startswith("data.") for name in given.difference(_SAME_ENCODING))
            warn_of_changes(run_folder, settings, data, split=split, is_encoded_alike=is_encoded_alike)
        timing = RunTiming.of(objects.latency, data.module, split=split)
        timing.check(model)
        model.to(device)  # type: ignore[arg-type]
        summary, prepared = Summary(), data.prepared
        score = prepared.final_score or prepared.score
        with summary.timed("evaluate"):
            values, tally = data.evaluate(
                model, split, task=objects.task, metrics=prepared.all_metrics, title=f"evaluating: {split}"
            )
        summary.add_metrics(Stage.COMPACT, "model", split, values)
        original = read_original(model, place)
        dense = model if original is None else build_original(model, original, device=device)
        summary.compare_models(dense, model, timing.batch(device))
        summary.latency, summary.short_latency = timing.compare(dense, model, run_seconds=summary.seconds["evaluate"])
        formats = {name: score_of(name, metric) for name, metric in prepared.all_metrics.items()}
        return Evaluated(
            model=folder,
            split=split,
            num_examples=tally.count()[0],
            limit=limit_of(settings, data, split),
            score=score,
            formats={**formats, score.name: score},
            summary=summary,
            is_compact=any(before != after for before, after in summary.sizes.values()),
            device=str(device),
        )


def _download(name: str) -> Path:
    """Return the folder of a model on the hub, or in the local cache."""
    located = locate(name)
    return Path(located if Path(located).is_dir() else snapshot_download(located))
