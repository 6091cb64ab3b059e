"""Latency of units and of open blocks, measured on compact shapes, and the budget of a speedup."""

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates, create_gates
from gating.objectives import ExactBudget, HeadBudget
from gating.objectives.costs import OPEN_BLOCKS
from gating.pruning.latency.comparison import margin
from gating.pruning.latency.copies import PRECISION, CopyTimer
from gating.pruning.latency.shapes import timed_shapes
from gating.pruning.latency.speedup import check_speedup
from gating.pruning.latency.time_budget import MAX_SECONDS, LatencySettings, TimeBudget
from gating.units import UnitName

__all__ = ["NUM_PASSES", "LatencyCosts", "budget_for_speedup", "measure_latency_costs"]

# Number of forward passes with which the fit and the search for gates after it are exact.
NUM_PASSES = 100
# Share of the dense latency that the open blocks of a unit are expected to take, and the largest error that counts.
_PRICE, _MOST_ERROR = 0.03, 0.2
# Least share of the units with which a search is expected to leave something in every block.
_LEAST_LEFT = 0.05


@dataclass(frozen=True)
class LatencyCosts:
    """Shares of the dense model's latency that its gated units and their blocks take, from a linear fit.

    A block takes time as long as one of its units is left, whatever their number: for calls of kernels, and for what it
    does with the hidden states.

    Attributes:
        shares: Share of all gated units, by their name.
        fixed: Share of everything else. As all shares are fitted, their sum can differ from 1 by some percent.
        fastest: Speedup of the model with one gate of each unit left.
        error: Largest relative standard error of the timings; infinite if a copy was timed too few times.
        open_blocks: Share of being open of all blocks with gates, by the name of their unit.
    """

    shares: dict[UnitName, float]
    fixed: float
    fastest: float
    error: float = math.inf
    open_blocks: Mapping[UnitName, float] = field(default_factory=dict)

    def rates(self, gates: HeadGates, *, price_blocks: bool = False) -> dict[str, Any]:
        """Return the cost of one multiply-accumulate of each unit, as share of the dense latency.

        Args:
            gates: The gates.
            price_blocks: Whether open blocks have a price of their own, instead of being a part of the units' costs.
        """
        # Units that seem to cost nothing beside their blocks still compete by their scores.
        least = 1e-6 * (sum(self.shares.values()) + sum(self.open_blocks.values()))
        in_units = {unit: 0.0 if price_blocks else self.open_blocks.get(unit, 0.0) for unit in gates.units}
        rates: dict[str, Any] = {
            unit: max(self.shares[unit] + in_units[unit], least) / float(gates.macs_per_gate[gates.is_of(unit)].sum())
            for unit in gates.units
        }
        if not price_blocks:
            return rates
        prices = {unit: self.open_blocks.get(unit, 0.0) / gates.block_units.count(unit) for unit in gates.units}
        return {**rates, OPEN_BLOCKS: prices}

    def predict(self, gates: HeadGates, kept: Tensor) -> float:
        """Return the latency with some gates kept, ``[num_gates]``, as share of the dense model's."""
        amounts = _amounts(gates, kept)
        prices = [*self.shares.values(), *(self.open_blocks.get(unit, 0.0) for unit in gates.units)]
        return self.fixed + sum(share * price for share, price in zip(amounts, prices, strict=True))

    def keep_for(self, speedup: float, *, gates: HeadGates | None = None, price_blocks: bool = False) -> float:
        """Return the share of the cost of all gated units that remains at a speedup; with gates, one that holds a gate.

        Where blocks have no prices, the search is expected to leave something in each of them as long as a twentieth of
        the units is left, and in proportionally fewer below.

        Raises:
            InputError: The speedup cannot be reached; the message names the largest one.

        Example:
            >>> round(LatencyCosts({"heads": 0.3, "neurons": 0.5}, fixed=0.2, fastest=4.8).keep_for(2.0), 3)
            0.375
        """
        # A speedup that the noise of the timings may hide is not refused: choices are timed after the search.
        if speedup > self.fastest * (1 + min(self.error, _MOST_ERROR)):
            precision = "" if math.isinf(self.error) else f" (timed {margin(self.error)})"
            raise InputError(
                f"speedup={speedup} cannot be reached by removing these units: with nearly all of them gone, the model "
                f"is {self.fastest:.2f} times as fast here{precision}. Ask for less than that."
            )
        time, units, blocks = 1 / speedup - self.fixed, sum(self.shares.values()), sum(self.open_blocks.values())
        if price_blocks:
            share = time / (units + blocks)
        elif time - blocks > _LEAST_LEFT * units:
            share = (time - blocks) / max(units, time - blocks)
        else:
            share = time / (units + blocks / _LEAST_LEFT)
        least = 0.01
        if gates is not None:
            cost = self.rates(gates, price_blocks=price_blocks)
            least = HeadBudget(keep=1.0, cost=cost).least_share(gates)
        return min(1.0, max(least, share))


def budget_for_speedup(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    speedup: float,
    units: UnitName | Collection[UnitName] = "heads",
    max_seconds: float = MAX_SECONDS,
    price_blocks: bool = False,
    **gate_options: Any,
) -> ExactBudget:
    """Return the objective with which a model becomes about as fast as wanted, from timings on this device.

    Compact copies are timed beside the model, some of them with empty blocks. The budget is a share of the latency of
    all gated units and their blocks. Which of them the search keeps is not known yet, so the compact model can be some
    percent faster or slower: time it at the end.

    Args:
        model: The dense model, without gates; unchanged.
        batch: Keyword arguments of the model, of the size to speed up, on its device. The model is timed with fewer of
            its rows if all of them would take too long.
        speedup: Time of the dense model over that of the compact one, above 1.
        units: Units that will have gates, as in :func:`gating.inject_gates`.
        max_seconds: Seconds that all timings may take together; passes that are needed in any case can exceed it. A
            warning has the error that was reached if they were too few.
        price_blocks: Whether the search knows that a block takes time as long as anything is left in it.
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
        costs = measure_latency_costs(gates, timer)
        keep = costs.keep_for(speedup, gates=gates, price_blocks=price_blocks)
        objective = ExactBudget(keep=keep, cost=costs.rates(gates, price_blocks=price_blocks))
    if timer.error > PRECISION:
        warnings.warn(timer.shortfall("max_seconds"), stacklevel=2)
    return objective


def measure_latency_costs(gates: HeadGates, timer: CopyTimer) -> LatencyCosts:
    """Fit the latency of units and open blocks to timings of compact copies of a model.

    Copies of several shapes, some with empty blocks, are timed against the dense model, alternately. The fit is linear
    in the shares of the units' multiply-accumulates and of the blocks that are open, and weighs relative errors, so
    that fast models are predicted as well as slow ones. Copies that it can do without are left out when the time is
    over.
    """
    needed = 2 * len(gates.units) + 1
    shapes = timed_shapes(gates)
    points, times = [], []
    for number, (what, kept) in enumerate(shapes):
        if timer.is_over and number >= needed:
            break
        # As many share the time as it is enough for; those that are needed leave a part of it in any case.
        count = max(needed + 0.5 - number, min(len(shapes) - number, timer.affordable), 1.0)
        times.append(1 / timer.time_kept(gates, kept, what=what, share=1 / count).speedup)
        points.append(_amounts(gates, kept))
    noise = statistics.median(found.error for found in timer.timed)
    # A block with one gate is open as long as its unit is there: a price of its own would be the same column twice.
    sizes = list(zip(gates.block_units, gates.block_sizes, strict=True))
    priced = [any(size > 1 for its_unit, size in sizes if its_unit == unit) for unit in gates.units]
    fixed, *fitted = _fit(points, times, error=noise, priced=priced)
    shares = dict(zip(gates.units, fitted[: len(gates.units)], strict=True))
    prices = dict(zip(gates.units, fitted[len(gates.units) :], strict=True))
    return LatencyCosts(shares, fixed, max(1.0, 1 / min(times)), timer.error, prices)


def _fit(points: list[list[float]], times: list[float], *, error: float, priced: list[bool]) -> list[float]:
    """Return the fixed share and that of each amount, none negative, that fit relative times best.

    Errors are relative, and the dense model is a point as the others are. Noise is easily taken for prices of open
    blocks, since few copies differ in nothing else. So these have a prior of 0.03 for the blocks of a unit, with the
    weight of ``(error / 0.03)^2`` in the sum of squares: exact timings hardly feel it.

    Args:
        points: What each copy has of each amount, from 0 to 1: of units first, then as many of open blocks.
        times: Relative time of each copy.
        error: Relative standard error of a time.
        priced: For each unit, whether its open blocks have a price; else it is 0.
    """
    relative = torch.tensor([*times, 1.0], dtype=torch.float64)
    amounts = torch.tensor([*points, [1.0] * len(points[0])], dtype=torch.float64)
    rows = torch.cat([torch.ones(len(relative), 1, dtype=torch.float64), amounts], dim=1) / relative.unsqueeze(1)
    num_prices = len(points[0]) // 2
    weight = min(error, _MOST_ERROR) / _PRICE
    prior = weight * torch.eye(rows.shape[1], dtype=torch.float64)[-num_prices:]
    rows = torch.cat([rows, prior])
    values = torch.cat([torch.ones_like(relative), prior.new_full((num_prices,), weight * _PRICE)])
    fitted, first_price = [0.0] * rows.shape[1], rows.shape[1] - num_prices
    columns = [place for place in range(len(fitted)) if place < first_price or priced[place - first_price]]
    while columns:
        found = torch.linalg.lstsq(rows[:, columns], values.unsqueeze(1)).solution.flatten().tolist()
        if min(found) >= 0:
            for column, share in zip(columns, found, strict=True):
                fitted[column] = share
            break
        columns.remove(columns[found.index(min(found))])
    return fitted


def _amounts(gates: HeadGates, kept: Tensor) -> list[float]:
    """Return the shares of each unit's multiply-accumulates, then those of each unit's blocks, that a mask keeps."""
    kept = kept.cpu()
    masks = [gates.is_of(unit) for unit in gates.units]
    macs = [float(gates.macs_per_gate[mask & kept].sum() / gates.macs_per_gate[mask].sum()) for mask in masks]
    is_open = [bool(part.any()) for part in kept.split(gates.block_sizes)]
    num_open = Counter(unit for unit, kept_any in zip(gates.block_units, is_open, strict=True) if kept_any)
    return macs + [num_open[unit] / gates.block_units.count(unit) for unit in gates.units]
