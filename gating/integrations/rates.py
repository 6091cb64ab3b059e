"""Optimizer groups and learning rates of gates in an optimizer of transformers' Trainer."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives import Objective
from gating.objectives.parameter_groups import gate_groups

__all__ = ["add_gate_groups", "keep_gate_rates", "remake_options"]

_CONSTANT = {"gates", "multipliers"}


def add_gate_groups(
    optimizer: torch.optim.Optimizer,
    gates: HeadGates,
    objective: Objective,
    *,
    gate_lr: float | None,
    multiplier_lr: float,
) -> None:
    """Add a group of the gates and, if the objective has multipliers, one of these to an optimizer, in place.

    Raises:
        InputError: Multipliers ascend, and the optimizer cannot; or it has the gates in another group already.
    """
    groups = gate_groups(gates, objective, gate_lr=gate_lr, multiplier_lr=multiplier_lr)
    if len(groups) > 1 and "maximize" not in optimizer.defaults:
        raise InputError(
            f"{type(objective).__name__} trains multipliers by gradient ascent, and {type(optimizer).__name__} has no "
            "option maximize: choose an optimizer of torch, such as args.optim='adamw_torch'."
        )
    own = {id(parameter) for group in groups for parameter in group["params"]}
    for group in optimizer.param_groups:
        if group.get("name") not in _CONSTANT and any(id(parameter) in own for parameter in group["params"]):
            raise InputError(
                "The optimizer in optimizers=(optimizer, None) has the gates in a group of weights: give it the "
                "weights alone; the trainer adds a group of the gates, with a rate of their own and without decay."
            )
    if any(group.get("name") in _CONSTANT for group in optimizer.param_groups):
        return  # Made by gating.parameter_groups.
    for group in groups:
        optimizer.add_param_group(group)


def keep_gate_rates(scheduler: LRScheduler, optimizer: torch.optim.Optimizer, *, first_step: int = 0) -> None:
    """Keep gates and multipliers at their learning rate in a new scheduler, in place; start it at a later step.

    Args:
        scheduler: A scheduler of :func:`transformers.get_scheduler` that has not made a step.
        optimizer: Its optimizer.
        first_step: Step of the schedule at which it begins, for the weights.

    Raises:
        InputError: The scheduler has no rates of each group.
    """
    groups = optimizer.param_groups
    if isinstance(scheduler, ReduceLROnPlateau):
        rates = zip(groups, scheduler.min_lrs, strict=True)
        scheduler.min_lrs = [group["lr"] if group.get("name") in _CONSTANT else least for group, least in rates]
        return
    if not isinstance(scheduler, LambdaLR):
        raise InputError(
            f"args.lr_scheduler_type makes a {type(scheduler).__name__}, in which gates cannot keep a rate of their "
            "own: choose linear, cosine, constant, or another one that is a LambdaLR."
        )
    for index, group in enumerate(groups):
        factor = scheduler.lr_lambdas[index]
        scheduler.lr_lambdas[index] = _one if group.get("name") in _CONSTANT else _later(factor, first_step)
        # The constructor has set the rate of the first step.
        group["lr"] = group["initial_lr"] * scheduler.lr_lambdas[index](0)
    scheduler._last_lr = [group["lr"] for group in groups]


def _later(factor: Callable[[int], float], first_step: int) -> Callable[[int], float]:
    """Return a schedule that begins at a later step; a function, since schedulers save the fields of other objects."""
    return lambda step: factor(step + first_step)


def _one(_: int) -> float:
    return 1.0


def remake_options(optimizer: torch.optim.Optimizer) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return class and arguments of an optimizer, to make one like it for other parameters."""
    accepted = inspect.signature(type(optimizer)).parameters
    return type(optimizer), {name: value for name, value in optimizer.defaults.items() if name in accepted}
