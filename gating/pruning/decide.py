"""The decision which units stay, from the gates, and the warning about arbitrary decisions."""

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from torch import Tensor

from gating.errors import InputError, InputTypeError, RemedyWarning
from gating.gates import HeadGates
from gating.objectives.base import Objective, check_objective
from gating.objectives.budget import HeadBudget
from gating.structure.blocks import whole_number
from gating.units import UNITS, UnitName

__all__ = ["decide_gate_values", "warn_if_arbitrary"]

# Smallest difference between the mean values of kept and of removed gates that counts as a decision.
_LEAST_GAP = 0.1
# Probability to be open below which a gate was decided to be closed.
_LEAST_STRENGTH = 1e-3


def decide_gate_values(
    gates: HeadGates,
    objective: Objective | None = None,
    *,
    num_heads: int | None = None,
    num_neurons: int | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Return the final value of every gate, ``[num_gates]``: 0 to remove its units, else the factor to fold in.

    The arguments and errors are those of :func:`gating.finalize`.
    """
    values = gates.values().detach()
    given = {"heads": num_heads, "neurons": num_neurons}
    numbers = {unit: whole_number(number) for unit, number in given.items() if number is not None}
    if kept is not None:
        others = [f"num_{unit}" for unit in gates.units] if numbers else []
        _check_kept(gates, kept, others=others or ([] if objective is None else ["an objective"]))
    else:
        kept = _choice_of(objective, gates, numbers)
    if kept is None and not numbers:
        if not values.any():
            raise InputError(
                f"Every gate is closed, so no {_one_of(gates)} would be left: lower the price, or give "
                f"{' and '.join(f'num_{unit}' for unit in gates.units)}."
            )
        return values
    if kept is None:
        # Units without a number stay as their gates are.
        kept = values > 0
        for unit, number in numbers.items():
            budget = HeadBudget(**{f"num_{unit}": number})  # type: ignore[arg-type]
            kept = torch.where(gates.is_of(unit).to(kept.device), budget.choose(gates, gates.log_alpha), kept)
    # A kept head with a closed gate would output zeros: it gets its average strength in training instead. One that was
    # decided to be closed, and is kept by another budget than that of the search, has the strength that it had before.
    average = gates.prob_open().detach()
    strength = torch.where(average < _LEAST_STRENGTH, 1.0, average)
    return kept * torch.where(values > 0, values, strength)


def _choice_of(objective: Objective | None, gates: HeadGates, numbers: Mapping[UnitName, int]) -> Tensor | None:
    """Return the gates that an objective keeps, ``[num_gates]``; None if numbers or the gates themselves decide."""
    objective = gates.objective if objective is None else objective
    if objective is None:
        return None
    check_objective(objective)
    chosen = objective.kept(gates)
    if chosen is None or (numbers and not gates.values().any() and math.isnan(objective.target(gates))):
        return None  # A price on gates sets no number.
    _check_kept(gates, chosen)
    for unit, number in numbers.items():
        total = sum(compress(gates.counts[unit], chosen.tolist()))
        if number != total:
            raise InputError(
                f"num_{unit}={number} contradicts the objective of these gates: {type(objective).__name__}"
                f"({objective.extra_repr()}) keeps {total} {unit}. Leave num_{unit} out, or give the gates to keep as "
                f"a mask, such as kept=gating.ExactBudget(num_{unit}={number}).kept(gates)."
            )
    return chosen


def _check_kept(gates: HeadGates, kept: Tensor, *, others: Sequence[str] = ()) -> None:
    if others:
        raise InputError(f"Give either {' and '.join(others)} or kept, not both.")
    if not isinstance(kept, Tensor):
        raise InputTypeError(f"kept must be a boolean tensor, one entry for each gate; got a {type(kept).__name__}.")
    if kept.dtype != torch.bool or kept.shape != gates.log_alpha.shape:
        raise InputError(
            f"kept must be a boolean tensor of shape {tuple(gates.log_alpha.shape)}, one entry for each gate; got "
            f"{kept.dtype} of shape {tuple(kept.shape)}."
        )
    if not kept.any():
        raise InputError(f"kept is false for every gate, so no {_one_of(gates)} would be left.")


def warn_if_arbitrary(gates: HeadGates, kept: Tensor, *, is_given: bool) -> None:
    """Warn if the gate values hardly separate kept from removed units of a kind, as after too little training.

    Args:
        gates: Trained gates.
        kept: Boolean mask of the gates to keep, ``[num_gates]``.
        is_given: Whether the mask comes from the caller instead of the gates.
    """
    values = gates.values().detach()
    for unit in gates.units:
        of_unit = gates.is_of(unit).to(values.device)
        problem = _why_arbitrary(values[of_unit], kept[of_unit], unit, is_given=is_given)
        if problem is not None:
            warnings.warn(problem, stacklevel=4)


def _why_arbitrary(values: Tensor, kept: Tensor, unit: UnitName, *, is_given: bool) -> RemedyWarning | None:
    """Return the warning about a choice among the gates of one kind of units, or None."""
    removed = ~kept
    num_kept, num_removed, num_open = int(kept.sum()), int(removed.sum()), int((values > 0).sum())
    if not num_removed or not num_kept:
        return None
    mean_kept, mean_removed = float(values[kept].mean()), float(values[removed].mean())
    num_alike = int((removed & (values > mean_kept - _LEAST_GAP)).sum())
    are_few, are_many = 2 * num_open <= num_kept, num_open > 2 * num_kept or 2 * num_alike >= min(num_kept, num_removed)
    if not (are_few or are_many or mean_kept - mean_removed < _LEAST_GAP):
        return None
    numbers = (
        f"the gates to keep ({num_kept}) are at {mean_kept:.2f} on average, those to remove ({num_removed}) at "
        f"{mean_removed:.2f}, of which {num_alike} are no more than {_LEAST_GAP} below the former, and {num_open} of "
        "all are open."
    )
    arbitrary = f"The choice of {unit} is nearly arbitrary: {numbers}"
    python = f"{arbitrary} Train"
    if is_given:
        python = f"Gates hardly tell the {unit} to keep: {numbers} Unless they were chosen without gates, train"
    price = "keep fewer, or lower a fixed price" if are_few else "with a larger learning rate (0.1 is usual)"
    return RemedyWarning(
        "",
        python=f"{python} for more steps, or {price}; in a loop of your own, call the objective's update before each.",
        command=f"{arbitrary} Train longer (trainer.max_epochs), or {price} (optimizer.gate_lr, objective.price).",
    )


def _one_of(gates: HeadGates) -> str:
    """Return the name of one gated unit: ``head``, ``neuron``, or both."""
    return " or ".join(UNITS[unit].singular for unit in gates.units)
