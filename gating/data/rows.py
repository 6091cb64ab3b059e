"""Rows of tables, compared by their content within and across splits."""

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from gating.distributed.collectives import is_rank_zero

_SEPARATOR = pa.scalar(b"\x1f", pa.large_binary())
# Keys of an empty text and of a pair of empty texts.
_EMPTY = pa.array([b"", b"\x1f"], pa.large_binary())

_log = logging.getLogger(__name__)


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
