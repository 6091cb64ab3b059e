"""Validation and test splits, drawn from the training data if they are missing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from gating.data.columns import find_input_columns, row_keys
from gating.data.examples import Examples
from gating.data.labels import LABEL_COLUMNS
from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError

Numbers = np.ndarray[Any, np.dtype[np.int64]]

# Validation and test each get a tenth of the rows, up to a maximum.
_FRACTION = 10
_MAX_ROWS = 10_000


def hold_out(examples: Examples, *, settings: Mapping[str, Any], has_classes: bool, seed: int) -> Examples:
    """Draw missing splits from the training data if there is no validation data."""
    splits = dict(examples.splits)
    if "validation" in splits:
        return examples
    table = splits.pop("train")
    usual = next((name for name in (*LABEL_COLUMNS, "fine_label") if name in table.column_names), None)
    label = (settings.get("label_column") or usual) if has_classes else None
    names = [name for name in ("validation", "test") if name not in splits]
    drawn = draw_splits(table, names, inputs=find_input_columns(table, settings), label=label, seed=seed)
    if is_rank_zero():
        shares = ", ".join(f"{len(rows)} {name}" for name, rows in drawn.items())
        how = f" and stratified by {label}" if label and label in table.column_names else ""
        print(f"The training data is divided with seed {seed}{how}, of {len(table)} rows: {shares}.")
    return replace(examples, splits=DatasetDict({**drawn, **splits}))


def draw_splits(
    table: Dataset, names: Sequence[str], *, inputs: Sequence[str] = (), label: str | None = None, seed: int
) -> DatasetDict:
    """Draw splits, a tenth of a table each; the remaining rows are ``train``.

    Rows that are equal in the columns ``inputs`` go into the same split. The draw is stratified by the classes of the
    column ``label``; at least one row of each class remains.
    """
    rows = np.arange(len(table))
    groups = _numbers(table, inputs) if inputs else None
    groups = rows if groups is None else groups
    classes = _numbers(table, [label]) if label and label in table.column_names else None
    classes = np.zeros_like(rows) if classes is None else classes
    firsts = np.unique(groups, return_index=True)[1]
    order = np.random.default_rng(seed).permutation(firsts)
    order = order[np.argsort(classes[order], kind="stable")]
    # The first group of each class stays in the training data.
    order = order[np.diff(classes[order], prepend=-2) == 0]
    number = len(names) * min(_MAX_ROWS, -(-len(firsts) // _FRACTION))
    if number > len(order):
        raise InputError(
            f"The training data has {len(table)} row(s), too few to draw {' and '.join(names)} data and keep one of "
            "each label. Give data.validation=..., or more rows."
        )
    # Evenly spaced places in rows sorted by class give each class its share.
    chosen = order[((np.arange(number) + 0.5) * len(order) / number).astype(np.int64)]
    held = [np.isin(groups, groups[chosen[place :: len(names)]]) for place in range(len(names))]
    masks = {"train": ~np.logical_or.reduce(held), **dict(zip(names, held, strict=True))}
    return DatasetDict({name: table.select(rows[mask]) for name, mask in masks.items()})


def _numbers(table: Dataset, columns: Sequence[str]) -> Numbers | None:
    """Return a number for each row, the same for equal rows; None if rows cannot be compared."""
    keys = row_keys(table, columns)
    if keys is None:
        return None
    indices = pc.fill_null(keys.combine_chunks().dictionary_encode().indices, -1)
    return np.asarray(indices, dtype=np.int64)
