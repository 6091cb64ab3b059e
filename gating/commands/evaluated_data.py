"""A model and its data for an evaluation, and warnings of changed data and unnamed classes."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
from datasets import DatasetDict, Value
from transformers import PreTrainedModel

from gating.compact.load import load_compact
from gating.compact.recipe_base import processor_folder
from gating.data.labels import using_classes
from gating.errors import InputError, RemedyError, UserError, explain, shorten
from gating.models.pretrained import Pretrained
from gating.run.build import RunObjects
from gating.run.data import RunData, encode_examples, load_examples
from gating.run.folder import stored_settings
from gating.run.inputs import data_differ, describe_inputs, read_inputs
from gating.run.settings import Settings
from gating.storage.identity import NUM_ROWS

__all__ = ["limit_of", "load_evaluation", "warn_of_changes"]

_log = logging.getLogger(__name__)

# Remedy of a training for a missing tokenizer, or one that does not load, with the end of the sentence before.
_NO_SETTING = re.compile(r"[:.] (?:[Nn]ame another|give) (one|image processor) with model\.tokenizer=(?:\.\.\.|\w+\.)")
_PREFIX = {"validation": "val", "test": "test"}


def load_evaluation(
    settings: Settings, objects: RunObjects, place: Path, *, split: str | None, only: str | None, folder: str
) -> tuple[RunObjects, PreTrainedModel, RunData, str]:
    """Load a model and the split to evaluate it on; return them with the objects of the settings and the split's name.

    Args:
        settings: The settings.
        objects: Their objects.
        place: Local folder of the model.
        split: Name of the split; None for the last one.
        only: Name of the only split of the data, which the source returns as ``train``; None if it returns all.
        folder: Folder or name of the model, for messages.
    """
    model = load_compact(place)
    # The processor is beside the weights.
    objects = replace(objects, source=Pretrained(str(processor_folder(place))))
    _check_task(model, objects, folder)
    data, split = _encode_split(settings, objects, model, split=split, only=only, folder=folder)
    return objects, model, data, split


def _check_task(model: PreTrainedModel, objects: RunObjects, folder: str) -> None:
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


def _encode_split(
    settings: Settings, objects: RunObjects, model: PreTrainedModel, *, split: str | None, only: str | None, folder: str
) -> tuple[RunData, str]:
    """Encode the split to evaluate on, with the classes of the model; see :func:`load_evaluation`."""
    with _naming_what_exists(only):
        examples = load_examples(settings, objects.task, hold_out_missing=only is None)
    tables = {only: examples.splits["train"]} if only else dict(examples.splits)
    split = split or ("test" if "test" in tables else "validation")
    if split not in tables:
        raise InputError(f"The data has no {split} examples: give data.{split}=..., or another --split.")
    classes = _classes_of(model)
    # Tasks read the columns of the training data; errors name the split that is checked first.
    both = replace(examples, splits=DatasetDict({split: tables[split], "train": tables[split]}))
    with using_classes(classes), _without_warnings("gating.data.rows"), _naming_what_exists(only):
        data = encode_examples(both, settings, objects, model)
    num_labels = data.prepared.config.get("num_labels", model.config.num_labels)
    if num_labels != model.config.num_labels:
        raise InputError(
            f"The {split} data has {num_labels} classes, and {folder} has {model.config.num_labels} without names: "
            "evaluate it on data with as many."
        )
    _check_tokens(data, model, split=split, folder=folder)
    _say_classes(data, folder, known=classes)
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


def _check_tokens(data: RunData, model: PreTrainedModel, *, split: str, folder: str) -> None:
    """Check that a model has each token of its data, which a changed tokenizer may give other numbers."""
    table, size = data.prepared.splits[split], None
    with suppress(NotImplementedError, AttributeError):
        size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if size is None or "input_ids" not in table.column_names:
        return
    largest = pc.max(pc.list_flatten(table.with_format("arrow")["input_ids"][:])).as_py()
    if largest is not None and largest >= size:
        raise InputError(
            f"The tokenizer of {folder} gives the {split} data the token {largest}, and the model has {size} tokens, "
            "from 0: it is damaged or of another model. Save the model's own tokenizer there."
        )


def _say_classes(data: RunData, folder: str, *, known: Sequence[str] | None) -> None:
    """Warn which label is which class of a model without names, unless the labels are the numbers themselves."""
    found = [str(name) for _, name in sorted(data.prepared.config.get("id2label", {}).items())]
    numbers = range(len(found))
    if known is None and found and found not in ([str(n) for n in numbers], [f"LABEL_{n}" for n in numbers]):
        shown = shorten(", ".join(f"{name!a} is {number}" for number, name in enumerate(found)), most=400)
        _log.warning(
            f"The classes of {folder} have numbers and no names, so labels are taken in their order: {shown}. If the "
            "model has learned others, give the numbers as the labels."
        )


@contextmanager
def _naming_what_exists(only: str | None) -> Iterator[None]:
    """Name in errors the setting of a single file, which is read as training data, and no setting of a model."""
    try:
        yield
    except UserError as error:
        sentence = explain(error)
        if "model.tokenizer=" in sentence and isinstance(error, RemedyError):
            sentence = str(error)
        sentence = _NO_SETTING.sub(r": save the right \1 in the folder of the model.", sentence)
        error.in_command = sentence.replace("data.train=", f"data.{only}=") if only else sentence
        raise


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


def warn_of_changes(run_folder: Path, settings: Settings, data: RunData, *, split: str, is_encoded_alike: bool) -> None:
    """Warn if a split has changed since the run that made the model, or is drawn with another seed.

    Where texts are encoded in another way than in the run, only classes and numbers of examples are compared.
    """
    try:
        before = read_inputs(run_folder)
    except InputError as error:
        # Its remedy is that of a run that is resumed.
        reason = str(error).partition(" Restore it")[0]
        _log.warning(f"The data cannot be compared with those of the run in {run_folder}: {reason}")
        return
    if before is None:
        return
    table = data.prepared.splits[split]
    if not is_encoded_alike:
        if not isinstance(table.features.get("labels"), Value):
            return
        table = table.select_columns(["labels"])
        of_run = before["data"].get(split, {})
        before = {**before, "data": {split: {name: of_run[name] for name in ("labels", NUM_ROWS) if name in of_run}}}
    rows = before["data"].get(split, {}).get(NUM_ROWS, len(table))
    places = {"data": settings.values["data"]}
    now = describe_inputs(places, {split: table}, num_rows={split: rows}, classes=None)
    changed = data_differ(before, now, split=split)
    if changed is None:
        return
    stored = stored_settings(run_folder)
    seeds = [(values.get("seed"), values["data"].get("seed")) for values in (stored, settings.values)]
    if seeds[0] != seeds[1]:
        # Sources of data have the seed of the run, if they have one.
        own, other = (of_data if of_data is not None else seed for seed, of_data in seeds)
        changed += (
            f". With seed={other} in place of the run's {own}, they are drawn anew, also from examples that the "
            "model was trained on, which makes its metrics too good: leave the seed out"
        )
    _log.warning(f"The data differ from those of the run in {run_folder}: {changed}.")
