"""Columns that a task reads, by their usual or given names, and rows compared by their content in some columns."""

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError

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
    *(("question", other) for other in ("sentence", "answer")),
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

_SEPARATOR = pa.scalar(b"\x1f", pa.large_binary())
# Keys of an empty text and of a pair of empty texts.
_EMPTY = pa.array([b"", b"\x1f"], pa.large_binary())

_log = logging.getLogger(__name__)


def find_column(splits: DatasetDict, given: str | None, usual: Sequence[str]) -> str:
    """Return a column's given name, or else the first usual name in the training split."""
    present = splits["train"].column_names
    return given or next((name for name in usual if name in present), usual[0])


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
    """
    wanted = list(columns.values())
    if len(set(wanted)) < len(wanted):
        raise InputError(
            f"{', '.join(columns)} are different columns, but {', '.join(wanted)} were given. Correct "
            f"{', '.join(f'data.{role}_column' for role in columns)}."
        )
    if any("." in name and name not in splits["train"].column_names for name in wanted):
        splits = splits.flatten()
    for split, table in splits.items():
        for role, name in columns.items():
            if name not in table.column_names:
                raise InputError(
                    f"The {split} data has no column {name!r}; it has {', '.join(table.column_names)}. Name the right "
                    f"one with data.{role}_column=..."
                )
    renamed = {name: role for role, name in columns.items() if name != role}
    taken = splits.select_columns(wanted).rename_columns(renamed)
    warn_of_overlap(taken, [role for role in columns if role in _INPUT_ROLES])
    return taken


def row_keys(table: Dataset, columns: Sequence[str]) -> pa.ChunkedArray | None:
    """Return a key for each row, as bytes, equal where some columns are; None if a column has another type."""
    content = table.select_columns(list(columns)).with_format("arrow")[:]
    try:
        parts = [_as_bytes(content[name]) for name in columns]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError):
        return None
    if len(parts) == 1:
        return parts[0]
    return pc.binary_join_element_wise(*parts, _SEPARATOR, null_handling="replace", null_replacement=b"")


def warn_of_overlap(splits: Mapping[str, Dataset], columns: Sequence[str]) -> None:
    """Warn, on rank 0, if splits share examples, because metrics of such splits are too optimistic."""
    if not is_rank_zero() or not columns:
        return
    found = {split: row_keys(table, columns) for split, table in splits.items()}
    keys = {split: rows for split, rows in found.items() if rows is not None}
    clauses = []
    for earlier, later in combinations(keys, 2):
        shared = _num_shared(keys[later], keys[earlier])
        if shared:
            clauses.append(f"{shared} of {len(keys[later])} {later} examples are in the {earlier} data, too")
    if clauses:
        _log.warning(
            f"{'; '.join(clauses)}: metrics look better than on new examples. Remove them from one of the two."
        )


def _num_shared(rows: pa.ChunkedArray, others: pa.ChunkedArray) -> int:
    """Return the number of rows that are among others, empty ones left out."""
    distinct = pc.unique(rows)
    distinct = distinct.filter(pc.invert(pc.is_in(distinct, value_set=_EMPTY))).drop_null()
    places = pc.unique(pc.index_in(others, value_set=distinct)).drop_null()
    return pc.sum(pc.is_in(rows, value_set=distinct.take(places))).as_py() or 0


def _as_bytes(column: Any) -> Any:
    """Return a column as bytes, within Arrow because Python would take minutes."""
    if pa.types.is_struct(column.type):
        # An image is compared by its encoded content, or else by the path of its file.
        content = pc.struct_field(column, "bytes")
        return pc.coalesce(content.cast(pa.large_binary()), _as_bytes(pc.struct_field(column, "path")))
    if pa.types.is_list(column.type):
        column = pc.binary_join(column.cast(pa.list_(pa.string())), " ")
    if not pa.types.is_binary(column.type) and not pa.types.is_large_binary(column.type):
        column = column.cast(pa.large_string())
    return column.cast(pa.large_binary())
