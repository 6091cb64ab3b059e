"""Tags of words as class numbers."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from gating.data.labels import check_classes, classes_of_model, number_classes, sort_labels
from gating.data.rows import name_row
from gating.errors import InputError, shorten

__all__ = ["encode_tags", "mark_spans"]

_MARK = re.compile(r"O|[BIES]-.+")


def encode_tags(splits: DatasetDict) -> tuple[DatasetDict, list[str]]:
    """Replace ``text`` and ``label`` of every split by lists: ``words``, and ``tags`` as class numbers.

    Both columns may hold lists, or strings with spaces between the items. The classes are those of all splits, since a
    rare tag may be missing in one: first the declared ones of the training data, then others sorted.

    Example:
        >>> rows = Dataset.from_dict({"text": ["Ada codes"], "label": ["B-person O"]})
        >>> splits, names = encode_tags(DatasetDict(train=rows))
        >>> splits["train"][0], names
        ({'words': ['Ada', 'codes'], 'tags': [0, 1]}, ['B-person', 'O'])

    Returns:
        The splits, and the names of the classes in the order of their numbers.

    Raises:
        ValueError: A row has no words, or not one tag for each word, or all tags are equal.
    """
    words = {split: [_items(value) for value in table["text"][:]] for split, table in splits.items()}
    tags = {split: _tag_names(table) for split, table in splits.items()}
    for split in splits:
        for row, (row_words, row_tags) in enumerate(zip(words[split], tags[split], strict=True)):
            _check_row(row_words, row_tags, split=split, row=row)
    declared = _classes(splits["train"])
    first = declared.names if declared else []
    others = sort_labels({tag for rows in tags.values() for row in rows for tag in row} - set(first))
    names = list(classes_of_model() or [*first, *others])
    if len(names) < 2:
        raise InputError(f"All words have the tag {', '.join(names) or 'none'}; there must be at least two.")
    numbers = number_classes(names, Counter(tag for rows in tags.values() for row in rows for tag in row))
    for split, rows in tags.items():
        # One tag of each row, an unknown one if there is any.
        check_classes((next((tag for tag in row if tag not in numbers), row[0]) for row in rows), numbers, split)
    encoded = {
        split: Dataset.from_dict(
            {"words": words[split], "tags": [[numbers[tag] for tag in row] for row in tags[split]]}
        )
        for split in splits
    }
    return DatasetDict(encoded), names


def _check_row(words: Sequence[Any], tags: Sequence[Any], *, split: str, row: int) -> None:
    """Check that a row has words, and one tag for each."""
    if not words and not tags:
        raise InputError(f"The {split} data has no words in {name_row(split, row)}. Fill it in, or remove the row.")
    if None in words or None in tags:
        kind = "tag" if None in tags else "word"
        raise InputError(
            f"The {split} data has a missing {kind} in {name_row(split, row)}: {shorten(str(tags))}. Fill "
            "it in, or remove the row."
        )
    if len(words) != len(tags):
        raise InputError(
            f"The {split} data has {len(words)} words but {len(tags)} tags in {name_row(split, row)}. Give "
            "every word one tag, as lists or with spaces between them; or learn one label for a whole text "
            "with task=sequence_classification."
        )


def mark_spans(names: Sequence[str]) -> bool:
    """Return whether tags mark spans, as ``B-person``, ``I-person`` and ``O`` do.

    Example:
        >>> mark_spans(["O", "B-person", "I-person"]), mark_spans(["NOUN", "VERB"])
        (True, False)
    """
    return all(_MARK.fullmatch(name) for name in names)


def _classes(table: Dataset) -> ClassLabel | None:
    inner = getattr(table.features["label"], "feature", None)
    return inner if isinstance(inner, ClassLabel) else None


def _tag_names(table: Dataset) -> list[list[Any]]:
    classes = _classes(table)
    rows = table["label"][:]
    if classes is None:
        return [_items(row) for row in rows]
    return [[None if tag is None else classes.int2str(tag) for tag in row or ()] for row in rows]


def _items(value: Any) -> list[Any]:
    """Return the items of a list or string; None for nulls."""
    if isinstance(value, str):
        return value.split()
    return [item if item is None else str(item) for item in value] if isinstance(value, list) else []
