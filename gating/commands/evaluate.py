"""``head-gating evaluate FOLDER``: the metrics, sizes and latency of a model on a data set."""

import argparse
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from huggingface_hub import snapshot_download
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from gating.compact.load import load_compact
from gating.compact.recipe import processor_folder
from gating.compact.stock import read_original
from gating.data.examples import Examples
from gating.distributed.launch import check_devices
from gating.errors import InputError, explain, shorten
from gating.models.hub import locate
from gating.models.sources import Pretrained
from gating.pruning.latency import margin
from gating.pruning.layers import build_original
from gating.report.score import Score
from gating.report.summary import Summary
from gating.run.build import RunObjects, build_objects
from gating.run.data import RunData, encode_examples, load_examples
from gating.run.folder import find_model, stored_settings
from gating.run.inputs import data_differ, read_inputs
from gating.run.settings import Settings, override_names, read_settings
from gating.run.timing import RunTiming
from gating.storage.files import finite_number
from gating.storage.identity import table_digests
from gating.tracking.verbosity import quiet_libraries

# Groups that an evaluation reads, in addition to the seed, with which missing splits are drawn.
_GROUPS = ("data", "task", "trainer", "latency")
_LIMITS = {"validation": "limit_val_batches", "test": "limit_test_batches"}
_OF_TRAINER = ("accelerator", *_LIMITS.values())
# These settings say where data is. Overriding only these does not select another source.
_PLACES = ("train", "validation", "test", "path", "name")
_EMBEDDING = "gating.tasks.Embedding"
_OF_FILES = {f"gating.data.{name}" for name in ("sources.load_files", "sources.load_text", "sentences.load_sentences")}

_log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a model, and print its metrics."""
    # Other output, such as how data was divided, is not part of the JSON.
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        numbers, text = evaluate_folder(arguments.folder, arguments.settings, split=arguments.split)
    print(json.dumps(numbers, indent=2) if arguments.json else text)


def evaluate_folder(folder: str, overrides: Sequence[str], *, split: str | None = None) -> tuple[dict[str, Any], str]:
    """Return the metrics, sizes and latency of a model by the names in ``metrics.json``, and as lines.

    The model is a folder, that of a finished run, or a name on the hub. The split is test by default, if there is one.
    """
    quiet_libraries()
    place, run_folder = find_model(folder)
    settings = evaluation_settings(str(place or folder), overrides, run_folder=run_folder, split=split)
    device = check_devices(settings.trainer).root
    # Wrong settings are refused before anything is downloaded.
    objects = build_objects(settings)
    place = local_model(folder, place)
    examples, split = load_split(settings, objects, split)
    objects, model, data = load_evaluation(settings, objects, place, examples, split=split)
    if run_folder is not None:
        _warn_of_changes(run_folder, override_names(overrides), examples, split=split)
    timing = RunTiming(objects.latency, data.module, split)
    timing.check(model)
    model.to(device)  # type: ignore[arg-type]
    summary, prepared = Summary(), data.prepared
    score = prepared.final_score or prepared.score
    with summary.timed("evaluate"):
        found = data.evaluate(
            model, split, task=objects.task, metrics=prepared.all_metrics, title=f"evaluating: {split}"
        )
    values, num_examples = found.metrics, found.count()[0]
    summary.add_metrics("compact", "model", split, values)
    original = read_original(model, place)
    dense = model if original is None else build_original(model, original, device=device)
    summary.compare_models(dense, model, timing.batch(device))
    summary.latency, summary.short_latency = timing.compare(dense, model, run_seconds=summary.seconds["evaluate"])
    limit = f"trainer.{_LIMITS[split]}={settings.trainer[_LIMITS[split]]}" if data.is_part(split) else None
    numbers = {
        "model": folder,
        "split": split,
        "num_examples": num_examples,
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
    title = f"{folder} on {num_examples:,} {split} examples{part} ({device}):"
    formats = {score.name: score}
    for metric in prepared.all_metrics.values():
        formats |= getattr(metric, "formats", {})
    names = sorted(values, key=lambda name: name != score.name)
    shown = {x: formats[x].show_measured(values[x]) if x in formats else f"{values[x]:.4f}" for x in names}
    return numbers, "\n".join([title, *_lines_of(shown, summary, score)])


def local_model(name: str, place: Path | None) -> Path:
    """Return the folder of a model, which is downloaded if it is not there."""
    place = place or Path(locate(name))
    return place if place.is_dir() else Path(snapshot_download(str(place)))


def _lines_of(metrics: Mapping[str, str], summary: Summary, score: Score) -> list[str]:
    """Return the lines of metrics, sizes and latencies, beside those of the dense model where units were removed."""
    lines, rows = [f"  {name}  {shown}" for name, shown in metrics.items()], summary.compact_report(score).rows
    if not _is_compact(summary):
        return [*lines, *(f"  {row.name}  {row.after}" for row in rows)]
    lines += [f"  {row.name}  {row.after} (dense: {row.before})" for row in rows]
    return lines + [f"  speed-up, {x.words}  {x.gain} ({margin(x.error)})" for x in summary.latencies.values()]


def _is_compact(summary: Summary) -> bool:
    return any(before != after for before, after in summary.sizes.values())


def evaluation_settings(
    model: str, overrides: Sequence[str], *, run_folder: Path | None, split: str | None
) -> Settings:
    """Return the settings of a command, beside those of the run that made the model, if there is one."""
    names = override_names(overrides)
    for name in names:
        group, _, setting = name.partition(".")
        if group not in (*_GROUPS, "seed") or (group == "trainer" and setting and setting not in _OF_TRAINER):
            raise InputError(
                f"{name} has no effect on an evaluation, which takes data, task, latency, seed, and of the trainer "
                f"{', '.join(_OF_TRAINER)}."
            )
    # Inside the package in a wheel, beside it in a checkout.
    package = Path(__file__).resolve().parents[1]
    conf = next(place / "conf" for place in (package, package.parent) if (place / "conf").is_dir())
    # Hydra does not know the options of the run: the objects refuse names that do not exist.
    added = [f"++{line}" if re.match(r"\w+\.", line) else line for line in overrides]
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            values: Any = OmegaConf.to_container(compose("config", overrides=added))
    except Exception as error:  # Hydra raises errors of many classes about settings.
        raise InputError(explain(error)) from error
    if run_folder is not None:
        values |= _of_run(values, overrides, run_folder=run_folder)
    elif not any(name.partition(".")[0] == "data" for name in names):
        raise InputError(f"{model} is not in the folder of a run, which has data: give data=..., such as data=files.")
    if values["task"].get("_target_") == _EMBEDDING:
        # Nothing is trained, and data of any kind are evaluated.
        values["task"] |= {"loss": None, "negations": 0}
        if values["task"].get("teacher") is None:
            # The model that is evaluated is not the one that it learned from.
            dense = {} if run_folder is None else stored_settings(run_folder)["model"]
            name, revision = dense.get("name") or "none", dense.get("revision", "main")
            values["task"] |= {"teacher": name, "teacher_revision": revision}
    given = [one for one in ("train", *_LIMITS) if f"data.{one}" in names and values["data"].get(one) is not None]
    is_of_files = values["data"].get("_target_") in _OF_FILES
    if is_of_files and given and "train" not in given and split in (None, *given):
        values["data"] |= {one: None for one in ("train", *_LIMITS) if one not in given}
    # One device evaluates, since batches of several processes are padded otherwise; no steps bound the examples.
    values["trainer"] |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "max_steps": -1}
    values["model"] = {"_target_": "gating.models.sources.Pretrained", "name": model}
    return read_settings(values)


def _of_run(composed: dict[str, Any], overrides: Sequence[str], *, run_folder: Path) -> dict[str, Any]:
    """Return the settings of a run that an evaluation reads, except those of the command.

    An option of data that names the run's own source says where other data is, and changes nothing else.
    """
    data, names = composed["data"], override_names(overrides)
    is_same = "data" in names and stored_settings(run_folder)["data"].get("_target_") == data.get("_target_")
    others = [line for line, name in zip(overrides, names, strict=True) if not (is_same and name == "data")]
    recalled = read_settings({**composed, "resume": str(run_folder)}, others).model_dump()
    values = {name: recalled[name] for name in (*_GROUPS, "seed")}
    if is_same:
        values["data"] |= {name: data[name] for name in _PLACES if name in data}
    # Data are evaluated whole, also where the run looked at a part of its own.
    values["trainer"] |= {name: 1.0 for name in _LIMITS.values() if f"trainer.{name}" not in names}
    if not {"data", "data.path", "data.name"}.isdisjoint(names):
        for split in _LIMITS:
            part = str(values["data"].get(f"{split}_split"))
            if part.startswith(f"{split}[") and "+" not in part and f"data.{split}_split" not in names:
                values["data"][f"{split}_split"] = split
    return values


def load_split(settings: Settings, objects: RunObjects, split: str | None) -> tuple[Examples, str]:
    """Return the examples of an evaluation, and the name of their split; by default the last one."""
    examples = load_examples(settings, objects, needs_train=False)
    split = split or ("test" if "test" in examples.splits else "validation")
    if split not in examples.splits:
        raise InputError(f"The data has no {split} examples: give data.{split}=..., or another --split.")
    return examples, split


def load_evaluation(
    settings: Settings, objects: RunObjects, place: Path, examples: Examples, *, split: str, has_train: bool = False
) -> tuple[RunObjects, PreTrainedModel, RunData]:
    """Load a model, and encode the examples of a split for it; return them with the objects of the settings.

    Without the training examples, those of the split are in their place.
    """
    model = load_compact(place)
    # The processor is beside the weights.
    objects = replace(objects, source=Pretrained(str(processor_folder(place))))
    families = getattr(objects.task.auto_class, "_model_mapping", None)
    if families is not None and not isinstance(model, families.get(type(model.config), ())):
        dense = getattr(type(model), "dense_class", type(model)).__name__
        raise InputError(f"{place} is a {dense}, not a model of {type(objects.task).__name__}: choose task=...")
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    classes = () if names == [f"LABEL_{number}" for number in range(len(names))] else tuple(names)
    # Tasks read the columns of the training data; errors name the split that is checked first.
    train = examples.splits["train" if has_train else split]
    splits = DatasetDict({split: examples.splits[split], "train": train})
    both = replace(examples, splits=splits, classes=classes)
    compared = logging.getLogger("gating.data.columns")
    try:
        compared.disabled = True  # These are no training data that hold test examples.
        data = encode_examples(both, settings, objects, model)
    finally:
        compared.disabled = False
    if not classes:
        _warn_of_classes(data, place)
    return objects, model, data


def _warn_of_classes(data: RunData, place: Path) -> None:
    """Warn which label is which class of a model without names, unless the labels are the numbers themselves."""
    found = [str(name) for _, name in sorted(data.prepared.config.get("id2label", {}).items())]
    numbers = range(len(found))
    if found not in ([], [str(n) for n in numbers], [f"LABEL_{n}" for n in numbers]):
        shown = shorten(", ".join(f"{name!a} is {number}" for number, name in enumerate(found)), most=400)
        _log.warning(
            f"The classes of {place} have numbers and no names, so labels are taken in their order: {shown}. If the "
            "model has learned others, give the numbers as the labels."
        )


def _warn_of_changes(run_folder: Path, names: Sequence[str], examples: Examples, *, split: str) -> None:
    """Warn if a split of the run that made a model has changed since, or is drawn with another seed."""
    before = read_inputs(run_folder)
    # Data that the command names may differ.
    if split not in before["examples"] or not {"data", *(f"data.{name}" for name in _PLACES)}.isdisjoint(names):
        return
    if data_differ(before, {"examples": {split: table_digests(examples.splits[split])}}, split):
        drawn = ""
        if "seed" in names:
            drawn = ": another seed draws them anew, also from examples that the model was trained on: leave it out"
        _log.warning(f"The {split} data differ from those of the run in {run_folder}{drawn}.")
