"""Validation and test examples, drawn from the training data where there are none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Value

from gating.data.columns import find_input_columns
from gating.data.examples import Examples
from gating.data.labels import LABEL_COLUMNS
from gating.data.rows import row_keys
from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError

__all__ = ["draw", "find_class_column", "hold_out"]

# One of so many is for each of validation and test, and no more than these.
_ONE_OF = 10
_MOST = 10_000

Numbers = np.ndarray[Any, np.dtype[np.int64]]


def hold_out(examples: Examples, *, settings: Mapping[str, Any], has_classes: bool, seed: int) -> Examples:
    """Draw what is missing of validation and test from the training data, where there is no validation data.

    Args:
        examples: The data.
        settings: Settings of the data that name columns.
        has_classes: Whether labels are classes, of each of which its share is drawn.
        seed: Seed of the draw.

    Raises:
        ValueError: There are too few rows.
    """
    splits = dict(examples.splits)
    if "validation" in splits:
        return examples
    table = splits.pop("train")
    usual = next((name for name in (*LABEL_COLUMNS, "fine_label") if name in table.column_names), None)
    label = (settings.get("label_column") or usual) if has_classes else None
    parts = [name for name in ("validation", "test") if name not in splits]
    drawn = draw(table, parts, inputs=find_input_columns(table, settings), label=label, seed=seed)
    if is_rank_zero():
        shares = ", ".join(f"{len(rows)} {name}" for name, rows in drawn.items())
        how = f" and stratified by {label}" if label and label in table.column_names else ""
        print(f"The training data is divided with seed {seed}{how}, of {len(table)} rows: {shares}.")
    return replace(examples, splits=DatasetDict({**drawn, **splits}))


def draw(
    table: Dataset, parts: Sequence[str], *, inputs: Sequence[str] = (), label: str | None = None, seed: int
) -> dict[str, Dataset]:
    """Draw a tenth of a table for each of some parts; what remains is ``train``.

    Args:
        table: The table.
        parts: Names of the parts.
        inputs: Columns by which rows are told apart: equal ones come into one part.
        label: Column of the classes, of each of which its share is drawn, and one row at least remains.
        seed: Seed of the draw.

    Raises:
        ValueError: There are too few rows.
    """
    classes = _numbers(table, [label]) if label and label in table.column_names else None
    for groups in (_numbers(table, inputs) if inputs else None, np.arange(len(table))):
        if groups is None:
            continue
        size, order = _order(groups, classes, seed)
        # So many, evenly spaced: of every class its share.
        places = (np.arange(size * len(parts)) + 0.5) * len(order) / (size * len(parts))
        if len(places) <= len(order):
            chosen = order[places.astype(np.int64)]
            held = [np.isin(groups, groups[chosen[number :: len(parts)]]) for number in range(len(parts))]
            rows = {"train": ~np.logical_or.reduce(held), **dict(zip(parts, held, strict=True))}
            return {name: table.select(np.flatnonzero(mask)) for name, mask in rows.items()}
    kept = "one to train on" if classes is None else "one of each label to train on"
    raise InputError(
        f"The training data has {len(table)} row(s), too few to draw {' and '.join(parts)} data from and to keep "
        f"{kept}. Add rows, or give validation data apart."
    )


def find_class_column(table: Dataset) -> str | None:
    """Return the column of classes of a table whose task is not known; None if it is not clear that there is one."""
    declared = next((name for name, feature in table.features.items() if isinstance(feature, ClassLabel)), None)
    usual = next((name for name in LABEL_COLUMNS if isinstance(table.features.get(name), Value)), None)
    if declared is not None or usual is None:
        return declared
    numbers = _numbers(table, [usual])
    return usual if numbers is not None and len(np.unique(numbers)) * _ONE_OF <= len(table) else None


def _order(groups: Numbers, classes: Numbers | None, seed: int) -> tuple[int, Numbers]:
    """Return how many groups a part has, and a row of each group that may be drawn, at random within its class."""
    firsts = np.unique(groups, return_index=True)[1]
    order = np.random.default_rng(seed).permutation(firsts)
    of_row = np.zeros(len(groups), np.int64) if classes is None else classes
    order = order[np.argsort(of_row[order], kind="stable")]
    is_first_of_class = np.diff(of_row[order], prepend=-2) != 0
    return min(_MOST, -(-len(firsts) // _ONE_OF)), order[~is_first_of_class]


def _numbers(table: Dataset, columns: Sequence[str]) -> Numbers | None:
    """Number the rows of a table by their content, equal ones alike; None if they cannot be compared."""
    keys = row_keys(table, columns)
    if keys is None:
        return None
    indices = pc.fill_null(pa.chunked_array(keys).combine_chunks().dictionary_encode().indices, -1)
    return np.asarray(indices, dtype=np.int64)
