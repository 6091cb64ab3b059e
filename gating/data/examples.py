"""Examples that a source returns, and their validation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict

from gating.data.rows import Numbers
from gating.errors import InputError, shorten

__all__ = ["Examples", "as_examples"]

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Examples:
    """A data set with its splits and metrics.

    Attributes:
        splits: ``train``, ``validation`` and optionally ``test``, with the columns of the data set.
        metrics: Names of its metrics, the first to report; empty for the default metrics of the task.
        rows: For each split that was drawn from other data, the indices of its rows there, for messages.
    """

    splits: DatasetDict
    metrics: tuple[str, ...] = ()
    rows: Mapping[str, Numbers] = field(default_factory=dict)


def as_examples(returned: Any, *, target: str) -> Examples:
    """Validate the data that a source returned, and convert it to examples.

    Example:
        >>> rows = Dataset.from_dict({"text": ["a"], "label": ["x"]})
        >>> list(as_examples({"test": rows, "train": rows}, target="my_module.load").splits)
        ['train', 'test']

    Args:
        returned: :class:`Examples`, a dictionary of data sets by split, or one data set, which becomes ``train``.
        target: Dotted name of the source, for messages.

    Returns:
        The examples, with the splits in the order train, validation, test.

    Raises:
        ValueError: ``returned`` has another type, lacks ``train``, or has a split that is unknown, empty or no data
            set.
    """
    given = returned if isinstance(returned, Examples) else Examples(returned)
    splits: Any = {"train": given.splits} if isinstance(given.splits, Dataset) else given.splits
    if not isinstance(splits, Mapping) or "train" not in splits or not set(splits) <= set(_SPLITS):
        found = ", ".join(map(repr, splits)) if isinstance(splits, Mapping) else f"a {type(splits).__name__}"
        raise InputError(
            f"data._target_={target} returned {shorten(found or 'no split')}: let it return a dictionary of "
            f"datasets.Dataset by split, {', '.join(_SPLITS)}; train is needed."
        )
    for name, table in splits.items():
        if not isinstance(table, Dataset) or not len(table):
            found = f"a {type(table).__name__}" if not isinstance(table, Dataset) else "no examples"
            raise InputError(f"data._target_={target} returned {found} as {name}: let it be a datasets.Dataset.")
    ordered = DatasetDict({name: splits[name] for name in _SPLITS if name in splits})
    return Examples(ordered, metrics=tuple(given.metrics), rows=given.rows)
