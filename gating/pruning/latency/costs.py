"""Latency of units, measured on compact shapes, and the budget of a speedup."""

import inspect
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates, create_gates
from gating.objectives import ExactBudget
from gating.pruning.latency.comparison import margin
from gating.pruning.latency.copies import PRECISION, CopyTimer
from gating.pruning.latency.settings import LatencySettings
from gating.pruning.latency.speedup import check_speedup, num_heads_for_speedup
from gating.pruning.latency.time_budget import MAX_SECONDS, TimeBudget
from gating.units import UnitName

__all__ = ["NUM_PASSES", "LatencyCosts", "budget_for_speedup", "budget_of_number", "measure_latency_costs"]

# Number of compact copies that the fit of two units needs; others make it exact.
_NUM_NEEDED = 3
# Number of forward passes with which the fit and the search for gates after it are exact.
NUM_PASSES = 100


@dataclass(frozen=True)
class LatencyCosts:
    """Shares of the dense model's latency that its gated units take, from a linear fit.

    Attributes:
        shares: Share of all gated units, by their name.
        fixed: Share of everything else.
        fastest: Speedup of the model with one gate of each unit left.
        error: Largest relative standard error of the timings; infinite if a copy was timed too few times.
    """

    shares: dict[UnitName, float]
    fixed: float
    fastest: float
    error: float = math.inf

    def rates(self, gates: HeadGates) -> dict[str, float]:
        """Return the cost of one multiply-accumulate of each unit, as share of the dense latency."""
        return {unit: self.shares[unit] / float(gates.macs_per_gate[gates.is_of(unit)].sum()) for unit in gates.units}

    def keep_for(self, speedup: float) -> float:
        """Return the share of the cost of all gated units that remains at a speedup.

        Raises:
            InputError: The speedup cannot be reached; the message names the largest one.

        Example:
            >>> round(LatencyCosts({"heads": 0.3, "neurons": 0.5}, fixed=0.2, fastest=4.8).keep_for(2.0), 3)
            0.375
        """
        if speedup > self.fastest:
            precision = "" if math.isinf(self.error) else f" (timed {margin(self.error)})"
            raise InputError(
                f"speedup={speedup} cannot be reached by removing these units: with nearly all of them gone, the model "
                f"is {self.fastest:.2f} times as fast here{precision}. Ask for less than that."
            )
        share = (1 / speedup - self.fixed) / sum(self.shares.values())
        return min(1.0, max(0.01, share))


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

    Compact copies are timed beside the model. With gates on heads alone the budget is a number of heads; with neurons
    it is a share of the latency of all gated units. Which units the search keeps is not known yet, so the compact model
    can be some percent faster or slower: time it at the end.

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
    check_speedup(speedup=speedup)
    gates = create_gates(model, units=units, **gate_options)
    budget = TimeBudget(LatencySettings(max_seconds=max_seconds).max_seconds)
    batch = budget.fit(model, batch, passes=NUM_PASSES)
    with budget.stage("timing copies") as stage:
        timer = CopyTimer(model, batch, stage=stage)
        if gates.is_weighed:
            costs = measure_latency_costs(gates, timer)
            objective = ExactBudget(keep=costs.keep_for(speedup), cost=costs.rates(gates))
        else:
            number = num_heads_for_speedup(gates, timer, speedup=speedup)
            objective = ExactBudget(**budget_of_number(gates, number))
    if timer.error > PRECISION:
        warnings.warn(timer.shortfall("max_seconds"), stacklevel=2)
    return objective


def budget_of_number(gates: HeadGates, number: int) -> dict[str, Any]:
    """Return a number of units as arguments of :class:`ExactBudget`: as a share if it takes no number of this unit."""
    unit = gates.units[0]
    is_taken = f"num_{unit}" in inspect.signature(ExactBudget).parameters
    return {f"num_{unit}": number} if is_taken else {"keep": number / gates.total(unit)}


def measure_latency_costs(gates: HeadGates, timer: CopyTimer) -> LatencyCosts:
    """Fit the latency of units to timings of compact copies of a model.

    Copies with some share of each unit in each block are timed against the dense model, alternately. The fit is linear
    in the shares. Copies that it can do without are left out when the time is over.
    """
    needed = max(_NUM_NEEDED, len(gates.units) + 1)
    points = [([1.0] * len(gates.units), 1.0)]
    fastest = 1.0
    for number, shares in enumerate(_shapes(len(gates.units))):
        if timer.is_over and number >= needed:
            break
        kept = _keep_evenly(gates, shares)
        what = ", ".join(f"{share:.0%} of the {unit}" for unit, share in zip(gates.units, shares, strict=True))
        # Those that are needed leave a part of the time to the others together.
        speedup = timer.time_kept(gates, kept, what=what, share=1 / max(needed + 0.5 - number, 1)).speedup
        fastest = max(fastest, speedup)
        points.append((_shares_of_macs(gates, kept), 1 / speedup))
    found = dict(zip(gates.units, _fit(points), strict=True))
    return LatencyCosts(found, 1 - sum(found.values()), fastest, timer.error)


def _shapes(num_units: int) -> list[tuple[float, ...]]:
    """Return the shares of each unit in the copies that are timed; the fit needs those that come first."""

    def one(index: int, share: float) -> tuple[float, ...]:
        return tuple(share if index == other else 0.5 for other in range(num_units))

    units = range(num_units)
    shapes = [(0.0,) * num_units, *(one(unit, 1.0) for unit in units), *((share,) * num_units for share in (0.5, 0.25))]
    shapes += [one(unit, 0.0) for unit in units]
    return [shape for shape in dict.fromkeys(shapes) if set(shape) != {1.0}]


def _fit(points: list[tuple[list[float], float]]) -> list[float]:
    """Return the share of each unit that fits relative times best, from 0 to 1 together.

    The dense model is exact: with ``r_u`` the removed shares, ``1 - time = sum_u share_u * r_u``.

    Args:
        points: The kept share of each unit in a copy, and its relative time.
    """
    removed = torch.tensor([[1 - share for share in shares] for shares, _ in points], dtype=torch.float64)
    saved = torch.tensor([1 - time for _, time in points], dtype=torch.float64)
    columns = list(range(removed.shape[1]))
    fitted = [0.0] * len(columns)
    while columns:
        found = torch.linalg.lstsq(removed[:, columns], saved.unsqueeze(1)).solution.flatten().tolist()
        if min(found) >= 0:
            # Imprecise timings can explain more than all of the time.
            total = max(1.0, sum(found))
            for column, share in zip(columns, found, strict=True):
                fitted[column] = share / total
            break
        columns.remove(columns[found.index(min(found))])
    return fitted


def _keep_evenly(gates: HeadGates, shares: Sequence[float]) -> Tensor:
    """Return the mask of the first gates of each block, and of at least one gate of each unit."""
    share_of = dict(zip(gates.units, shares, strict=True))
    kept = []
    missing = set(gates.units)
    for size, unit in zip(gates.block_sizes, gates.block_units, strict=True):
        number = round(size * share_of[unit]) or int(unit in missing)
        missing.discard(unit)
        kept.append(torch.arange(size) < number)
    return torch.cat(kept)


def _shares_of_macs(gates: HeadGates, kept: Tensor) -> list[float]:
    """Return the share of the multiply-accumulates of each unit that a mask keeps."""
    masks = [gates.is_of(unit) for unit in gates.units]
    return [float(gates.macs_per_gate[mask & kept].sum() / gates.macs_per_gate[mask].sum()) for mask in masks]
