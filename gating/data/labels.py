"""Labels as class numbers."""

import logging
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, shorten

# Usual names of the column of labels.
LABEL_COLUMNS = ("label", "labels")

_log = logging.getLogger(__name__)

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
# This is just below the largest float32.
_MAX = 3e38
_ZEROS = re.compile(r"(?<=\d)\.0+$")


def encode_labels(splits: DatasetDict, classes: Sequence[str] = ()) -> tuple[DatasetDict, list[str]]:
    """Encode the column ``label`` of every split as class numbers from 0, and return the names of the classes.

    The training split defines the classes: in their declared order if its column is a ``ClassLabel``, else sorted by
    :func:`sort_labels`; the ``classes`` of a trained model replace them.
    """
    feature = splits["train"].features["label"]
    written = {split: _as_text(table, split) for split, table in splits.items()}
    if not isinstance(feature, ClassLabel) and all(map(_NUMBER.fullmatch, written["train"])):
        # 1 for 1.0, because files may write the same number differently.
        written = {split: [_ZEROS.sub("", label) for label in labels] for split, labels in written.items()}
        if fraction := next((label for label in written["train"] if "." in label), None):
            raise InputError(
                f"data.label_column has numbers with fractions, such as {fraction}: learn them by task=regression."
            )
    names = list(feature.names) if isinstance(feature, ClassLabel) else sort_labels(written["train"])
    names = list(classes or names)
    if len(names) < 2:
        raise InputError(
            f"All training examples have the label {shorten(repr(names[0]))}; a classifier needs at least two."
        )
    numbers = number_classes(names, Counter(written["train"]))
    encoded = {}
    for split, table in splits.items():
        check_classes(written[split], numbers, split)
        column = [numbers[label] for label in written[split]]
        encoded[split] = table.remove_columns("label").add_column("label", column)
    return DatasetDict(encoded), names


def number_classes(names: Sequence[str], counts: Mapping[str, int]) -> dict[str, int]:
    """Return the number of each class; warn, on rank 0, of classes that differ only in their spelling."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[" ".join(unicodedata.normalize("NFC", name).casefold().split())].append(name)
    twice = [f"{name!a} ({counts.get(name, 0)})" for group in groups.values() if len(group) > 1 for name in group]
    if twice and is_rank_zero():
        _log.warning(
            f"{len(names)} classes are {len(groups)} when case, spaces and encoding are ignored: "
            f"{shorten(', '.join(twice), most=400)}. Each is learned as a separate class, with this number of "
            "examples; spell the same class the same way."
        )
    return {name: number for number, name in enumerate(names)}


def check_classes(labels: Iterable[str], numbers: Mapping[str, int], split: str) -> None:
    """Check that all labels of a split are classes of the training data, or of the model."""
    unknown = next(((row, label) for row, label in enumerate(labels) if label not in numbers), None)
    if unknown:
        row, label = unknown
        raise InputError(
            f"The {split} data has the label {shorten(ascii(label))} (row {row + 1}), which is no class of the "
            f"training data or the model: {shorten(', '.join(numbers))}."
        )


def _as_text(table: Dataset, split: str) -> list[str]:
    """Return labels as text, since labels of one file may be read as numbers and those of another as words."""
    feature = table.features["label"]
    # Reading the column label by label would be a hundred times slower.
    labels: Sequence[Any] = table["label"][:]
    if isinstance(feature, ClassLabel):
        labels = [None if label is None or label < 0 else feature.int2str(label) for label in labels]
    for row, label in enumerate(labels):
        if label is None or label == "" or label != label:
            # Benchmarks do not publish the labels of their test splits.
            raise InputError(f"The {split} data has no label in row {row + 1}: fill it in, or leave it out.")
    return [str(label) for label in labels]


def read_numbers(table: Dataset, column: str, split: str) -> list[float]:
    """Return a column of finite numbers in single precision, also of ones that are written as words."""
    # Numbers of classes stand for names, not quantities.
    classes = getattr(table.features[column], "names", None)
    numbers = []
    for row, value in enumerate(table[column][:]):
        shown = classes[value] if classes and value is not None and value >= 0 else value
        try:
            numbers.append(float(shown))
        except (TypeError, ValueError):
            numbers.append(math.nan)
        if not abs(numbers[-1]) < _MAX:
            raise InputError(
                f"The {split} data has the {column} {shown!r} in row {row + 1}, which is not a number. "
                "Correct the row, or learn classes with task=sequence_classification."
            )
    return numbers


def sort_labels(names: Iterable[str]) -> list[str]:
    """Return distinct labels, sorted by value if all are numbers, else alphabetically."""
    names = set(names)
    try:
        # Labels with the same value, such as 1 and 01, are sorted as text.
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)
