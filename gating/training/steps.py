"""Numbers of optimizer steps and evaluated batches."""

from collections.abc import Mapping
from typing import Any

from gating.errors import InputError


def count_steps(trainer: Mapping[str, Any], *, num_batches: int) -> int:
    """Return the number of optimizer steps of a whole run, search and recovery together.

    Args:
        trainer: Settings of the trainer: ``max_steps`` or, if that is -1, ``max_epochs``; ``limit_train_batches`` and
            ``accumulate_grad_batches``.
        num_batches: Batches of one rank in an epoch.

    Raises:
        InputError: The run would have no step.

    Example:
        >>> settings = {"max_epochs": 3, "max_steps": -1, "limit_train_batches": 1.0, "accumulate_grad_batches": 2}
        >>> count_steps(settings, num_batches=25)
        39
    """
    accumulate, limit = trainer["accumulate_grad_batches"], trainer["limit_train_batches"]
    epochs, steps = trainer["max_epochs"], int(trainer["max_steps"])
    used = _used_batches(limit, num_batches=num_batches)
    if steps == -1 and accumulate > 0:
        steps = int(epochs * -(-used // accumulate))
    if min(accumulate, used, steps) < 1:
        raise InputError(
            f"There is nothing to train with trainer.max_epochs={epochs}, trainer.max_steps={trainer['max_steps']}, "
            f"trainer.limit_train_batches={limit} and trainer.accumulate_grad_batches={accumulate}."
        )
    return steps


def validation_interval(trainer: Mapping[str, Any], *, num_batches: int) -> int | float:
    """Return ``val_check_interval``: a number of batches, at most an epoch, or a fraction of an epoch."""
    interval: int | float = trainer["val_check_interval"]
    used = _used_batches(trainer["limit_train_batches"], num_batches=num_batches)
    return min(interval, used) if isinstance(interval, int) else interval


def _used_batches(limit: int | float, *, num_batches: int) -> int:
    """Return the number of batches used, where ``limit`` is a number of batches or a fraction of them."""
    return min(num_batches, limit) if isinstance(limit, int) else int(num_batches * min(limit, 1.0))


def count_evaluated(trainer: Mapping[str, Any], split: str, *, num_batches: int) -> int:
    """Return the number of batches of a split that are evaluated, during and at the end of phases.

    Args:
        trainer: Settings of the trainer: ``limit_val_batches`` and ``limit_test_batches``, numbers or fractions.
        split: ``validation`` or ``test``.
        num_batches: Number of batches of the split.

    Raises:
        InputError: The fraction is less than one batch, but not 0.
    """
    name = {"validation": "limit_val_batches", "test": "limit_test_batches"}[split]
    limit = 1.0 if trainer.get(name) is None else trainer[name]
    used = _used_batches(limit, num_batches=num_batches)
    if limit > 0 and used < 1:
        raise InputError(f"trainer.{name}={limit} of {num_batches} {split} batch(es) is less than one.")
    return used
