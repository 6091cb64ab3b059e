"""From the tags of words, as people write them, to class numbers."""

import re
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from gating.data.labels import sort_labels, warn_of_spellings
from gating.errors import InputError, shorten

__all__ = ["encode_tags", "mark_spans"]

_MARK = re.compile(r"O|[BIES]-.+")


def encode_tags(splits: DatasetDict) -> tuple[DatasetDict, list[str]]:
    """Replace ``text`` and ``label`` of every split by lists: ``words``, and ``tags`` as class numbers.

    Both may be lists already, or strings with spaces between the items. The classes are those of all splits, because
    a rare tag may be missing in one: in the order that the training data declares, or else sorted.

    Returns:
        The splits, and the names of the classes in the order of their numbers.

    Raises:
        ValueError: A row has no words or tags, or not as many tags as words.
    """
    words = {split: [_items(value) for value in table["text"][:]] for split, table in splits.items()}
    tags = {split: _tag_names(table) for split, table in splits.items()}
    for split in splits:
        for row, (some_words, some_tags) in enumerate(zip(words[split], tags[split], strict=True)):
            if not some_words and not some_tags:
                raise InputError(f"The {split} data has no words in row {row + 1}. Fill it in, or remove the row.")
            if None in some_words or None in some_tags:
                what = "tag" if None in some_tags else "word"
                raise InputError(
                    f"The {split} data has a {what} that is missing in row {row + 1}: {shorten(str(some_tags))}. Fill "
                    "it in, or remove the row."
                )
            if len(some_words) != len(some_tags):
                raise InputError(
                    f"The {split} data has {len(some_words)} words but {len(some_tags)} tags in row {row + 1}. Give "
                    "every word one tag, as lists or with spaces between them; or learn one label for a whole text "
                    "with task=sequence_classification."
                )
    declared = _classes(splits["train"])
    used = {tag for rows in tags.values() for row in rows for tag in row}
    names = [*(declared.names if declared else ()), *sort_labels(used - set(declared.names if declared else ()))]
    if len(names) < 2:
        raise InputError(f"All words have the tag {', '.join(names) or 'none'}; there must be at least two.")
    warn_of_spellings(names)
    numbers = {name: number for number, name in enumerate(names)}
    encoded = {
        split: Dataset.from_dict(
            {"words": words[split], "tags": [[numbers[tag] for tag in row] for row in tags[split]]}
        )
        for split in splits
    }
    return DatasetDict(encoded), names


def mark_spans(names: Sequence[str]) -> bool:
    """Say whether tags mark where spans begin and go on: ``B-person``, ``I-person`` and ``O``."""
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
    """Split a text, or read a list; what is missing in it stays None."""
    if isinstance(value, str):
        return value.split()
    return [item if item is None else str(item) for item in value] if isinstance(value, list) else []
