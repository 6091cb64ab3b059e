"""The budget of a wanted speed-up, and the choice of gates that has it, from timings on this device."""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import create_gates
from gating.objectives import ExactBudget
from gating.pruning.latency.copies import MAX_SECONDS, CopyTimer, TimeBudget
from gating.pruning.latency.costs import NUM_PASSES, measure_latency_costs
from gating.units import UnitName

__all__ = ["budget_for_speedup", "check_speedup", "kept_for_speedup"]

# Number of choices of gates that are timed at most.
_MAX_ATTEMPTS = 8
# Distance from the wanted speedup at which the search for gates ends, and at which it warns.
_CLOSE, _FAR = 0.02, 0.05


def check_speedup(speedup: float, **others: object) -> None:
    """Raise ``InputError`` if a speed-up is not above 1, or another budget, such as a share to keep, is given, too."""
    for name, value in others.items():
        if value is not None:
            raise InputError(f"Give either speedup or {name}: got speedup={speedup} and {name}={value}.")
    if not speedup > 1:
        raise InputError(f"speedup={speedup} is not above 1: give a number such as 1.3, or leave it out.")


def budget_for_speedup(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    speedup: float,
    units: UnitName | Collection[UnitName] = "heads",
    max_seconds: float = MAX_SECONDS,
    **gate_options: Any,
) -> ExactBudget:
    """Return the objective with which a model becomes about as fast as wanted, from timings on this device.

    Compact copies are timed beside the model, some of them with empty blocks. The budget is a share of the latency of
    all gated units and their blocks. Which of them the search keeps is not known yet, so the compact model can be some
    percent faster or slower: time it at the end. The call that gives the same budget without timings is printed, and a
    search that is resumed takes the budget of its checkpoint.

    Args:
        model: The dense model, without gates; unchanged.
        batch: Keyword arguments of the model, of the size to speed up, on its device. The model is timed with fewer of
            its rows if all of them would take too long.
        speedup: Time of the dense model over that of the compact one, above 1.
        units: Units that will have gates, as in :func:`gating.inject_gates`.
        max_seconds: Seconds that all timings may take together; passes that are needed in any case can exceed it. A
            warning has the error that was reached if they were too few.
        gate_options: Its other arguments.

    Raises:
        ValueError: The speedup is not above 1, or cannot be reached; the message has the largest one. Or the model has
            gates already.
    """
    check_speedup(speedup)
    gates = create_gates(model, units=units, **gate_options)
    budget = TimeBudget(max_seconds)
    batch = budget.fit(model, batch, passes=NUM_PASSES)
    with budget.stage() as seconds:
        timer = CopyTimer(model, batch, seconds=seconds)
        costs = measure_latency_costs(gates, timer)
    objective = ExactBudget()
    objective.take_measured({"keep": costs.keep_for(speedup, gates), "cost": costs.rates(gates)})
    print(f"{speedup} times as fast ({timer.words}): ExactBudget({objective.extra_repr()})", flush=True)
    if shortfall := timer.shortfall("max_seconds"):
        warnings.warn(shortfall, stacklevel=2)
    return objective


def kept_for_speedup(
    choose: Callable[[float], Tensor],
    measure: Callable[[Tensor], tuple[float, float, bool]],
    *,
    speedup: float,
    keep: float,
) -> Tensor:
    """Return the choice of gates with which the compact model is measured to have a speedup.

    Latency is linear in the kept units and open blocks only roughly. So copies with the chosen gates are timed, and the
    budget is moved until the speedup is right; a warning names the one that was reached if it is further away than 5
    percent. A smaller difference than that ends the search if it is no larger than the error of the timing, and so does
    the end of the time.

    Args:
        choose: Function from a share of the cost to the mask of the gates to keep, ``[num_gates]``.
        measure: Function from a mask to the speedup that it reaches, its relative standard error, and whether the time
            is over.
        speedup: Time of the dense model over that of the compact one.
        keep: The share to begin with.

    Example:
        >>> import torch
        >>> choose = lambda share: torch.arange(48) < share * 48
        >>> speedup_of = lambda kept: (1 / (0.2 + 0.8 * kept.float().mean().item()), 0.0, False)
        >>> kept_for_speedup(choose, speedup_of, speedup=2.0, keep=0.6).sum().item()
        18
    """
    # Relative times of the nearest shares that are too fast and too slow.
    fast, slow = (0.0, 0.0), (1.0, 1.0)
    tried: list[tuple[float, float, Tensor]] = []
    share = keep
    for _ in range(_MAX_ATTEMPTS):
        kept = choose(share)
        reached, error, is_over = measure(kept)
        tried.append((abs(reached / speedup - 1), reached, kept))
        # A choice that is too far away is moved however uncertain its time is.
        if is_over or tried[-1][0] <= max(_CLOSE, min(error, _FAR)):
            break
        if reached > speedup:
            fast = (share, 1 / reached)
        else:
            slow = (share, 1 / reached)
        share = _between(fast, slow, 1 / speedup)
        if slow[0] - fast[0] < 1e-3:
            break
    distance, reached, kept = min(tried, key=lambda attempt: attempt[0])
    if distance > _FAR:
        warnings.warn(
            f"The compact model is {reached:.2f} times as fast as the dense one here, not {speedup}: of {len(tried)} "
            "choices of these gates that were timed, none was closer.",
            stacklevel=2,
        )
    return kept


def _between(fast: tuple[float, float], slow: tuple[float, float], time: float) -> float:
    """Return the share at which a line through two points has the wanted time, away from both ends."""
    (low, fast_time), (high, slow_time) = fast, slow
    position = (time - fast_time) / (slow_time - fast_time) if slow_time > fast_time else 0.5
    return low + min(0.9, max(0.1, position)) * (high - low)
