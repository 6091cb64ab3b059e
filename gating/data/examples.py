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
    splits: Any = given.splits
    if isinstance(splits, Dataset):
        splits = {"train": splits}
    where = f"data._target_={target} returned"
    if not isinstance(splits, Mapping):
        raise InputError(
            f"{where} {_kind(splits)}: let it return a dictionary of datasets.Dataset by their split: "
            f"{', '.join(_SPLITS)}."
        )
    _check_splits(splits, where)
    metrics = given.metrics
    if isinstance(metrics, str) or not all(isinstance(name, str) for name in metrics):
        raise InputError(f"{where} metrics={metrics!r}: give the names of metrics as a tuple, such as ('accuracy',).")
    ordered = DatasetDict({name: splits[name] for name in _SPLITS if name in splits})
    return Examples(ordered, metrics=tuple(metrics), rows=given.rows)


def _check_splits(splits: Mapping[Any, Any], where: str) -> None:
    unknown = next((name for name in splits if name not in _SPLITS), None)
    if unknown is not None or "train" not in splits:
        found = ", ".join(map(repr, splits)) or "no split"
        raise InputError(f"{where} {shorten(found)}: call the splits {', '.join(_SPLITS)}; train is needed.")
    for name, table in splits.items():
        if not isinstance(table, Dataset):
            raise InputError(f"{where} {_kind(table)} as {name}: let it be a datasets.Dataset.")
        if not len(table):
            instead = "" if name == "train" else f", or leave {name} out"
            raise InputError(f"{where} no examples as {name}: give some{instead}.")


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
