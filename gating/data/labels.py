"""Labels as class numbers."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Json

from gating.data.rows import name_row
from gating.data.spelling import groups_of_spellings, hint_at_spelling
from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, shorten

__all__ = [
    "LABEL_COLUMNS",
    "check_classes",
    "classes_of_model",
    "encode_labels",
    "hint_at_regression",
    "number_classes",
    "sort_labels",
    "using_classes",
]

# Usual names of the column of labels.
LABEL_COLUMNS = ("label", "labels")

_log = logging.getLogger(__name__)

_of_model: ContextVar[tuple[str, ...] | None] = ContextVar("of_model", default=None)

# More labels are numbers of rows, not classes.
_MAX_CLASSES = 100_000
# More whole numbers than that are hardly ever the names of classes.
_MANY = 20
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


@contextmanager
def using_classes(names: Sequence[str] | None) -> Iterator[None]:
    """Encode labels in a ``with`` block as the classes of a trained model, in the order of their numbers.

    Without names, the classes are those of the training data.
    """
    token = _of_model.set(None if names is None else tuple(names))
    try:
        yield
    finally:
        _of_model.reset(token)


def classes_of_model() -> tuple[str, ...] | None:
    """Return the classes of :func:`using_classes`; None outside of it."""
    return _of_model.get()


def encode_labels(splits: DatasetDict) -> tuple[DatasetDict, list[str]]:
    """Encode the column ``label`` of every split as class numbers from 0.

    The training split defines the classes: in their declared order if its column is a ``ClassLabel``, else sorted by
    :func:`sort_labels`. Inside of :func:`using_classes`, a model does.

    Example:
        >>> rows = Dataset.from_dict({"text": ["a", "b"], "label": ["good", "bad"]})
        >>> splits, names = encode_labels(DatasetDict(train=rows))
        >>> splits["train"]["label"][:], names
        ([1, 0], ['bad', 'good'])

    Returns:
        The splits, and the names of the classes in the order of their numbers.

    Raises:
        ValueError: A label is missing, is no class or does not occur in the training split, or all labels are equal.
    """
    feature = splits["train"].features["label"]
    written = {split: _as_text(table, split) for split, table in splits.items()}
    if not isinstance(feature, ClassLabel) and all(map(_NUMBER.fullmatch, written["train"])):
        written = {split: _without_fractions(labels, split) for split, labels in written.items()}
    names = list(feature.names) if isinstance(feature, ClassLabel) else sort_labels(written["train"])
    names = list(classes_of_model() or names)
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
    """Return the number of each class; warn, on rank 0, of classes that differ only in their spelling.

    Raises:
        ValueError: There are more classes than any model tells apart, such as the numbers of the rows.
    """
    if len(names) > _MAX_CLASSES:
        raise InputError(
            f"The training data has {len(names):,} classes, such as {shorten(ascii(names[0]))}; at most "
            f"{_MAX_CLASSES:,} can be learned. Name the right column with data.label_column=..., or learn numbers with "
            "task=regression."
        )
    groups = groups_of_spellings(names)
    twice = [f"{name!a} ({counts.get(name, 0)})" for group in groups for name in group]
    if twice and is_rank_zero():
        distinct = len(names) - len(twice) + len(groups)
        _log.warning(
            f"{len(names)} classes are {distinct} when case, spaces, invisible characters and different codes of the "
            f"same character are ignored: {shorten(', '.join(twice), most=400)}. Each is learned as a separate class, "
            "with this number of examples; spell the same class the same way."
        )
    return {name: number for number, name in enumerate(names)}


def check_classes(labels: Iterable[str], numbers: Mapping[str, int], split: str) -> None:
    """Check that all labels of a split are classes of the training data, or of the model.

    Raises:
        ValueError: A label is no class.
    """
    unknown = next(((row, label) for row, label in enumerate(labels) if label not in numbers), None)
    if unknown:
        row, label = unknown
        owner, remedy = "training data", "Correct the row, or add examples of it to the training data."
        if classes_of_model() is not None:
            owner, remedy = "model", "Evaluate it on data with its labels."
        raise InputError(
            f"The {split} data has the label {shorten(repr(label))} ({name_row(split, row)}), which the {owner} "
            f"lacks; it has {shorten(', '.join(numbers))}. {hint_at_spelling(label, numbers) or remedy}"
        )


def _as_text(table: Dataset, split: str) -> list[str]:
    """Return labels as text, since labels of one file may be read as numbers and those of another as words."""
    feature = table.features["label"]
    if isinstance(feature, Json):
        # datasets reads mixed columns of JSON files so, with some texts as numbers.
        raise InputError(
            f"The {split} data has labels of several kinds, such as texts and numbers: write all of them as texts."
        )
    # Reading the column label by label would be a hundred times slower.
    labels: Sequence[Any] = table["label"][:]
    if isinstance(feature, ClassLabel):
        return [
            feature.int2str(label) if label is not None and label >= 0 else _missing(split, row)
            for row, label in enumerate(labels)
        ]
    return [_label_text(label, split, row) for row, label in enumerate(labels)]


def _label_text(label: Any, split: str, row: int) -> str:
    if label is None or label == "" or label != label:
        _missing(split, row)
    if isinstance(label, (list, dict)):
        raise InputError(
            f"The {split} data has more than one label in {name_row(split, row)}: {shorten(repr(label))}. Learn "
            "one label for each word with task=token_classification."
        )
    if isinstance(label, bytes):
        raise InputError(
            f"The {split} data has the label {shorten(repr(label))} in {name_row(split, row)}, which is not a class. "
            "Name the column of the labels with data.label_column=..., or correct the row."
        )
    if isinstance(label, float) and not label.is_integer():
        raise _fraction(split, row, label)
    return str(label)


def _without_fractions(labels: list[str], split: str) -> list[str]:
    """Return 1 for 1.0 where classes are numbers, because files may write the same number differently."""
    for row, label in enumerate(labels):
        if _NUMBER.fullmatch(label) and "." in label and label.rpartition(".")[2].strip("0"):
            raise _fraction(split, row, label)
    return [label.partition(".")[0] if _NUMBER.fullmatch(label) else label for label in labels]


def _fraction(split: str, row: int, label: object) -> InputError:
    return InputError(
        f"The {split} data has the label {label} in {name_row(split, row)}: numbers with fractions are not classes; "
        "task=regression learns numbers."
    )


def _missing(split: str, row: int) -> str:
    # Benchmarks do not publish the labels of their test splits.
    instead = "leave the test out" if split == "test" else "remove the row"
    raise InputError(f"The {split} data has no label in {name_row(split, row)}. Fill it in, or {instead}.")


def hint_at_regression(splits: DatasetDict, names: Sequence[str]) -> None:
    """Tell, on rank 0, that many whole numbers are learned as classes without an order."""
    is_declared = isinstance(splits["train"].features["label"], ClassLabel) or classes_of_model() is not None
    if len(names) > _MANY and not is_declared and all(map(_NUMBER.fullmatch, names)) and is_rank_zero():
        _log.warning(
            f"The labels are {len(names)} whole numbers, which are learned as classes without an order. If they are "
            "quantities, learn them with task=regression."
        )


def sort_labels(names: Iterable[str]) -> list[str]:
    """Return distinct labels, sorted by value if all are numbers, else alphabetically.

    Example:
        >>> sort_labels(["10", "9", "9"]), sort_labels(["b", "a", "10"])
        (['9', '10'], ['10', 'a', 'b'])
    """
    names = set(names)
    try:
        # Labels with the same value, such as 1 and 01, are sorted as text.
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)
