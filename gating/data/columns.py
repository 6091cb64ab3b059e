"""Columns that a task reads, by their usual or given names."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from gating.data.rows import warn_of_overlap
from gating.data.spelling import other_spelling
from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError

__all__ = ["find_column", "find_input_columns", "find_text_columns", "take_columns"]

_log = logging.getLogger(__name__)

# Usual names of the column of texts, or of the two columns of text pairs, in order of precedence.
_USUAL_TEXTS: tuple[tuple[str, ...], ...] = (
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("text",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("anchor", "positive"),
    *(("query", other) for other in ("positive", "document", "passage", "answer")),
    ("question", "sentence"),
    ("sentence",),
)

# Usual names of model inputs, for all tasks, in order of precedence.
_USUAL_INPUTS: tuple[tuple[str, ...], ...] = (
    ("context", "question"),
    ("tokens",),
    ("words",),
    *_USUAL_TEXTS,
    *((name,) for name in ("source", "document", "article", "dialogue", "content", "image", "img")),
)
_INPUT_ROLES = ("text", "text_pair", "context", "question", "image")


def find_column(splits: DatasetDict, given: str | None, usual: Sequence[str]) -> str:
    """Return a column's given name, or else the first usual name in the training split; warn if its plural is there."""
    if given is not None:
        return given
    present = splits["train"].column_names
    found = next((name for name in usual if name in present), usual[0])
    if found in present and f"{found}s" in usual and f"{found}s" in present and is_rank_zero():
        _log.warning(
            f"The data has the columns {found!r} and '{found}s': the first is read. Remove or rename the other."
        )
    return found


def find_text_columns(splits: DatasetDict, text: str | None, text_pair: str | None) -> dict[str, str]:
    """Return the columns of a text or text pair by their role, for :func:`take_columns`.

    If ``text`` is None, the usual names, also those of pairs, are looked for in the training split.
    """
    if text is not None:
        return {"text": text} | ({"text_pair": text_pair} if text_pair else {})
    present = set(splits["train"].column_names)
    found = next((usual for usual in _USUAL_TEXTS if present.issuperset(usual)), ("text",))
    second = text_pair or (found[1] if len(found) > 1 else None)
    return {"text": found[0]} | ({"text_pair": second} if second else {})


def find_input_columns(table: Dataset, settings: Mapping[str, Any]) -> list[str]:
    """Return the columns of model inputs, as far as they are known without the task."""
    present = set(table.column_names)
    given = [settings[f"{role}_column"] for role in _INPUT_ROLES if settings.get(f"{role}_column")]
    usual = next((names for names in _USUAL_INPUTS if present.issuperset(names)), ())
    return [name for name in given or usual if name in present]


def take_columns(splits: DatasetDict, columns: Mapping[str, str]) -> DatasetDict:
    """Select the column of each role, and rename it to the role; warn if splits share examples.

    A column such as ``translation.de`` is a field of a nested one.

    Example:
        >>> rows = Dataset.from_dict({"body": ["a", "b"], "stars": [5, 1], "id": [0, 1]})
        >>> take_columns(DatasetDict(train=rows), {"text": "body", "label": "stars"})["train"][0]
        {'text': 'a', 'label': 5}

    Raises:
        ValueError: A split lacks a column, or a column has two roles.
    """
    wanted = list(columns.values())
    if len(set(wanted)) < len(wanted):
        raise InputError(
            f"{', '.join(columns)} are different columns, but {', '.join(wanted)} were given. Correct "
            f"{', '.join(f'data.{role}_column' for role in columns)}."
        )
    if any("." in name and name not in splits["train"].column_names for name in wanted):
        splits = splits.flatten()
    roles = {name: role for role, name in columns.items()}
    for split, table in splits.items():
        missing = next((name for name in wanted if name not in table.column_names), None)
        if missing is not None:
            other = other_spelling(missing, table.column_names)
            known = "" if other is None else f" {other!a} is another spelling of it: rename that column."
            raise InputError(
                f"The {split} data has no column {missing!r}; it has {', '.join(table.column_names)}.{known} Name the "
                f"right one with data.{roles[missing]}_column=..."
            )
        _warn_of_spellings(table, wanted, split)
    renamed = {name: role for name, role in roles.items() if name != role}
    taken = splits.select_columns(wanted).rename_columns(renamed)
    warn_of_overlap(taken, [role for role in columns if role in _INPUT_ROLES])
    return taken


def _warn_of_spellings(table: Dataset, wanted: Sequence[str], split: str) -> None:
    """Warn, on rank 0, of columns that look like one that is read."""
    for name in wanted:
        other = other_spelling(name, table.column_names)
        if other is not None and is_rank_zero():
            _log.warning(
                f"The {split} data has the columns {name!a} and {other!a}, which look the same: the first is "
                "read. Remove or rename the other."
            )
