"""Examples that a source returns, and their validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from torch import Tensor

from gating.errors import InputError, shorten

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Examples:
    """A data set with its splits and metrics.

    Attributes:
        splits: ``train``, which an evaluation may lack, ``validation`` and optionally ``test``, with their columns.
        metrics: Names of its metrics, the first to report; empty for the default metrics of the task.
        classes: Names of the classes of a trained model; empty for those of the training data.
    """

    splits: DatasetDict
    metrics: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def as_examples(returned: Any, *, target: str, needs_train: bool = True) -> Examples:
    """Return the data of a source, data sets by split or one that becomes ``train``, as valid examples, train first."""
    given = returned if isinstance(returned, Examples) else Examples(returned)
    splits: Any = {"train": given.splits} if isinstance(given.splits, Dataset) else given.splits
    needed = {"train"} if needs_train else set()
    if (
        not isinstance(splits, Mapping)
        or not needed <= set(splits) <= set(_SPLITS)
        or not all(isinstance(table, Dataset) and len(table) for table in splits.values())
    ):
        raise InputError(
            f"data._target_={target} must return a datasets.Dataset with rows for each split, by its name: train, "
            f"which is needed, validation and test. It returned {shorten(str(returned))}."
        )
    ordered = DatasetDict({name: splits[name] for name in _SPLITS if name in splits})
    return Examples(ordered, metrics=tuple(given.metrics))


Batch = Mapping[str, Any]

# Names of the targets that models of transformers take.
TARGETS = ("labels", "start_positions", "end_positions")

# Prefixes of values for metrics, and for a task with a loss of its own, which the model does not take.
_PREFIXES = ("metric_", "task_")


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Return the keyword arguments for the model's forward pass, targets included."""
    return {name: value for name, value in batch.items() if not name.startswith(_PREFIXES)}


def num_rows(batch: Batch) -> int:
    """Return the number of examples of a batch, or of their windows."""
    return len(next((batch[name] for name in TARGETS if name in batch), next(iter(batch.values()))))


def num_targets(batch: Batch) -> int:
    """Return the number of targets over which a batch's loss is averaged: examples, or tokens with a label.

    Example:
        >>> import torch
        >>> num_targets({"labels": torch.tensor([[5, 8, -100], [4, -100, -100]])})
        3
    """
    targets: Tensor | None = next((batch[name] for name in TARGETS if name in batch), None)
    if targets is None:
        return num_rows(batch)
    return targets.numel() if targets.is_floating_point() else int((targets != -100).sum())
