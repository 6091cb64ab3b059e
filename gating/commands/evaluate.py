"""``head-gating evaluate FOLDER``: the metrics, sizes and latency of a model on a data set."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download

from gating.commands.evaluation import LIMITS, evaluation_settings, load_evaluation, warn_of_changes
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


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a model, and print its metrics.

    Raises:
        InputError: The model, the data and the settings do not fit each other.
    """
    # Other output, such as how data was divided, is not part of the JSON.
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        evaluated = evaluate_folder(arguments.folder, arguments.settings, split=arguments.split)
    print(json.dumps(evaluated.numbers, indent=2) if arguments.json else evaluated.text)


class Evaluated(NamedTuple):
    """The evaluation of a model.

    Attributes:
        numbers: Metrics, sizes and latency by the names in ``metrics.json``, with what was evaluated; NaN is None.
        text: The same as lines.
    """

    numbers: dict[str, Any]
    text: str


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
    with naming_settings(settings.model_dump()):
        device = check_devices(settings.trainer).root
        # Wrong settings are refused before anything is downloaded.
        objects = build_objects(settings)
        place = place or _download(folder)
        objects, model, data, split = load_evaluation(settings, objects, place, split=split, only=only)
        if run_folder is not None:
            warn_of_changes(run_folder, overrides, data, split=split)
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
    limit = f"trainer.{LIMITS[split]}={settings.trainer[LIMITS[split]]}" if data.is_part(split) else None
    numbers = {
        "model": folder,
        "split": split,
        "num_examples": tally.count()[0],
        "limit": limit,
        "metric": score.name,
        "metrics": {name: finite_number(value) for name, value in values.items()},
        **{name: finite_number(value) for name, value in summary.flat().items() if "/" not in name},
        **summary.timed_batches(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    if not _is_compact(summary):
        numbers = {name: value for name, value in numbers.items() if not re.search("_before$|^speedup", name)}
    part = "" if limit is None else f", a part of them by {limit}"
    title = f"{folder} on {tally.count()[0]:,} {split} examples{part} ({device}):"
    formats = {**{name: score_of(name, metric) for name, metric in prepared.all_metrics.items()}, score.name: score}
    names = sorted(values, key=lambda name: name != score.name)
    shown = {x: formats[x].show_measured(values[x]) if x in formats else f"{values[x]:.4f}" for x in names}
    return Evaluated(numbers, "\n".join([title, *_lines_of(shown, summary, score)]))


def _lines_of(metrics: Mapping[str, str], summary: Summary, score: Score) -> list[str]:
    """Return the lines of metrics, sizes and latencies, beside those of the dense model where units were removed."""
    lines = [f"  {name}  {shown}" for name, shown in metrics.items()]
    if not _is_compact(summary):
        return [*lines, *(f"  {row.name}  {row.after}" for row in summary.compact_report(score).rows)]
    lines += [f"  {row.name}  {row.after} (dense: {row.before})" for row in summary.compact_report(score).rows]
    return lines + [f"  speed-up, {x.words}  {x.speedup:.2f}x ({margin(x.error)})" for x in summary.latencies.values()]


def _is_compact(summary: Summary) -> bool:
    return any(before != after for before, after in summary.sizes.values())


def _download(name: str) -> Path:
    """Return the folder of a model on the hub, or in the local cache."""
    located = locate(name)
    return Path(located if Path(located).is_dir() else snapshot_download(located))
