"""Parts of a batch: model inputs, targets, and values for metrics alone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["TARGETS", "TEACHER_LOGITS", "Batch", "model_inputs", "num_rows", "num_targets"]

Batch = Mapping[str, Any]

# Names of the targets that models of transformers take.
TARGETS = ("labels", "start_positions", "end_positions")

# Name of the logits of a teacher, of shape ``(batch, classes)``, where they are stored with the examples.
TEACHER_LOGITS = "task_teacher_logits"

# Prefixes of values for metrics, and for a task with a loss of its own, which the model does not take.
_PREFIXES = ("metric_", "task_")


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Return the keyword arguments for the model's forward pass, targets included.

    Example:
        >>> model_inputs({"input_ids": [[3, 7]], "labels": [1], "metric_target": ["a"]})
        {'input_ids': [[3, 7]], 'labels': [1]}
    """
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
