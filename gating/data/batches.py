"""The parts of a batch: what the model reads, what is right, and what only the metrics read."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["TARGETS", "Batch", "model_inputs", "num_targets"]

Batch = Mapping[str, Any]

# What is right, by the names under which models of transformers take it.
TARGETS = ("labels", "start_positions", "end_positions")

# Names in a batch that begin so are for the metrics; the model does not see them.
_FOR_METRICS = "metric_"


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Return the part of a batch that the model takes."""
    return {name: value for name, value in batch.items() if not name.startswith(_FOR_METRICS)}


def num_targets(batch: Batch) -> int:
    """Return how many things the loss of a batch is the mean of: examples, or tokens that have a label."""
    targets: Tensor = next(batch[name] for name in TARGETS if name in batch)
    return targets.numel() if targets.is_floating_point() else int((targets != -100).sum())
