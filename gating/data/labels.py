"""From labels as people write them to class numbers."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, shorten

__all__ = ["LABEL_COLUMNS", "encode_labels", "sort_labels", "warn_of_spellings"]

# What the column of a label is usually called.
LABEL_COLUMNS = ("label", "labels")

_log = logging.getLogger(__name__)

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def encode_labels(splits: DatasetDict) -> tuple[DatasetDict, list[str]]:
    """Replace the column ``label`` of every split by class numbers from 0.

    The classes are those of the training split: in their declared order where the data declares one, else sorted
    (numbers by value, words by letters).

    Returns:
        The splits, and the names of the classes in the order of their numbers.

    Raises:
        ValueError: A label is missing, is no class, or does not occur in the training split; or there is only one.
    """
    feature = splits["train"].features["label"]
    written = {split: _as_text(table, split) for split, table in splits.items()}
    if not isinstance(feature, ClassLabel) and all(map(_NUMBER.fullmatch, written["train"])):
        written = {split: _without_fractions(labels, split) for split, labels in written.items()}
    names = list(feature.names) if isinstance(feature, ClassLabel) else sort_labels(written["train"])
    if not names:
        raise InputError("The training data declares no classes and has no examples.")
    if len(names) < 2:
        raise InputError(
            f"All training examples have the label {shorten(repr(names[0]))}; a classifier needs at least two."
        )
    warn_of_spellings(names)
    numbers = {name: number for number, name in enumerate(names)}
    encoded = {}
    for split, table in splits.items():
        labels = written[split]
        unknown = next(((row, label) for row, label in enumerate(labels) if label not in numbers), None)
        if unknown:
            row, label = unknown
            raise InputError(
                f"The {split} data has the label {shorten(repr(label))} (row {row + 1}), which the training data "
                f"lacks; it has {shorten(', '.join(names))}. Correct the row, or add examples of it to the training "
                "data."
            )
        encoded[split] = table.remove_columns("label").add_column("label", [numbers[label] for label in labels])
    return DatasetDict(encoded), names


def _as_text(table: Dataset, split: str) -> list[str]:
    """Labels of one file may be read as numbers and those of another as words: compare what was written."""
    feature = table.features["label"]
    if type(feature).__name__ == "Json":
        # As datasets reads values of several kinds in a column of JSON, with some texts turned into numbers.
        raise InputError(
            f"The {split} data has labels of several kinds, such as texts and numbers: write all of them as texts."
        )
    # The whole column at once: reading it label by label is a hundred times slower.
    labels: Sequence[Any] = table["label"][:]
    if isinstance(feature, ClassLabel):
        return [
            feature.int2str(label) if label is not None and label >= 0 else _missing(split, row)
            for row, label in enumerate(labels)
        ]
    result = []
    for row, label in enumerate(labels):
        if label is None or label == "" or label != label:
            _missing(split, row)
        if isinstance(label, (list, dict)):
            raise InputError(
                f"The {split} data has more than one label in row {row + 1}: {shorten(repr(label))}. One for each word "
                "is learned with task=token_classification."
            )
        if isinstance(label, bytes):
            raise InputError(
                f"The {split} data has the label {shorten(repr(label))} in row {row + 1}, which is no class. Name the "
                "column of the labels with data.label_column=..., or correct the row."
            )
        if isinstance(label, float) and not label.is_integer():
            raise _fraction(split, row, label)
        result.append(str(label))
    return result


def _without_fractions(labels: list[str], split: str) -> list[str]:
    """Write 1.0 as 1 where classes are numbers: the same ones may be written so in another file."""
    for row, label in enumerate(labels):
        if _NUMBER.fullmatch(label) and "." in label and label.rpartition(".")[2].strip("0"):
            raise _fraction(split, row, label)
    return [label.partition(".")[0] if _NUMBER.fullmatch(label) else label for label in labels]


def _fraction(split: str, row: int, label: object) -> ValueError:
    return InputError(
        f"The {split} data has the label {label} in row {row + 1}: numbers with fractions are no classes; "
        "task=regression learns numbers."
    )


def _missing(split: str, row: int) -> str:
    # Benchmarks keep the labels of their test sets secret.
    instead = "leave the test out" if split == "test" else "remove the row"
    raise InputError(f"The {split} data has no label in row {row + 1}. Fill it in, or {instead}.")


def warn_of_spellings(names: Sequence[str]) -> None:
    """Warn once, in the first process, where classes differ in nothing but case and spaces."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in names:
        spellings[" ".join(name.split()).casefold()].append(name)
    twice = [repr(name) for group in spellings.values() if len(group) > 1 for name in group]
    if twice and is_rank_zero():
        _log.warning(
            f"{len(names)} classes are {len(spellings)} when case and surrounding spaces are ignored: "
            f"{shorten(', '.join(twice), most=400)}. Each is learned as a class of its own; write the same one always "
            "alike."
        )


def sort_labels(names: Iterable[str]) -> list[str]:
    """Sort labels: numbers by value, words by letters."""
    names = set(names)
    try:
        # What is one number, such as 1 and 01, is sorted as written.
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)
