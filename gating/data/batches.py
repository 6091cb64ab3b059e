"""Parts of a batch: model inputs, targets, and values for metrics alone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["TARGETS", "Batch", "model_inputs", "num_targets"]

Batch = Mapping[str, Any]

# Names of the targets that models of transformers take.
TARGETS = ("labels", "start_positions", "end_positions")

# Prefix of values for metrics, which the model does not take.
_METRIC_PREFIX = "metric_"


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Return the keyword arguments for the model's forward pass, targets included.

    Example:
        >>> model_inputs({"input_ids": [[3, 7]], "labels": [1], "metric_target": ["a"]})
        {'input_ids': [[3, 7]], 'labels': [1]}
    """
    return {name: value for name, value in batch.items() if not name.startswith(_METRIC_PREFIX)}


def num_targets(batch: Batch) -> int:
    """Return the number of targets over which a batch's loss is averaged: examples, or tokens with a label.

    Example:
        >>> import torch
        >>> num_targets({"labels": torch.tensor([[5, 8, -100], [4, -100, -100]])})
        3
    """
    targets: Tensor = next(batch[name] for name in TARGETS if name in batch)
    return targets.numel() if targets.is_floating_point() else int((targets != -100).sum())
