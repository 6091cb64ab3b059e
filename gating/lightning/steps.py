"""How many optimizer steps a run has."""

from collections.abc import Mapping
from typing import Any

__all__ = ["count_steps", "validation_interval"]


def count_steps(trainer: Mapping[str, Any], *, num_batches: int) -> int:
    """Return the optimizer steps of a whole run, search and recovery together.

    Args:
        trainer: Settings of the trainer: ``max_steps`` or, where that is not positive, ``max_epochs``;
            ``limit_train_batches`` and ``accumulate_grad_batches``.
        num_batches: Batches in an epoch, of one process where there are several.

    Raises:
        ValueError: There would be no step.
    """
    accumulate, limit = trainer["accumulate_grad_batches"], trainer["limit_train_batches"]
    if accumulate < 1:
        raise ValueError(f"trainer.accumulate_grad_batches={accumulate}: a step takes at least one batch.")
    if trainer["max_steps"] > 0:
        return int(trainer["max_steps"])
    used = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    steps = int(trainer["max_epochs"] * -(-used // accumulate))
    if steps < 1:
        raise ValueError(
            f"There is nothing to train with trainer.max_epochs={trainer['max_epochs']}, "
            f"trainer.max_steps={trainer['max_steps']} and trainer.limit_train_batches={limit}: give positive numbers."
        )
    return steps


def validation_interval(trainer: Mapping[str, Any], *, num_batches: int) -> int | float:
    """Return after how many batches, or which share of an epoch, to validate; at the latest after an epoch."""
    interval: int | float = trainer["val_check_interval"]
    return min(interval, num_batches) if isinstance(interval, int) else interval
