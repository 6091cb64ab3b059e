"""The budget of a wanted speed-up: latency costs of units, fitted to timings of compact copies on this device."""

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates, create_gates
from gating.gates.hard_concrete import are_numbers
from gating.objectives import ExactBudget, HeadBudget
from gating.pruning.latency import MAX_SECONDS, CopyTimer, TimeBudget, margin
from gating.units import UnitName

# Number of forward passes with which the fit and the search for gates after it are exact.
NUM_PASSES = 100
# Share of the dense latency that the open blocks of a unit are expected to take, and the largest error that counts.
_PRICE, _MOST_ERROR = 0.03, 0.2
# Least share of the units with which a search is expected to leave something in every block.
_LEAST_LEFT = 0.05
# Factors of the share that consecutive blocks keep: chosen gates leave blocks of odd widths, too.
_UNEVEN = (0.7, 1.3, 1.0)
# Copies of mixed shapes: their number, how likely a block is empty, and the largest share that an open one keeps.
_NUM_MIXED, _EMPTY, _MOST = 16, (0.4, 0.0, 0.6, 0.2), (0.5, 0.25, 1.0)
# Number of choices of gates that are timed at most.
_MAX_ATTEMPTS = 8
# Distance from the wanted speedup at which the search for gates ends, and at which it warns.
_CLOSE, _FAR = 0.02, 0.05


@dataclass(frozen=True)
class LatencyCosts:
    """Shares of the dense model's latency that its gated units and their blocks take, from a linear fit.

    A block takes time as long as one of its units is left, whatever their number. So ``shares`` are those of all units
    of a name, ``blocks`` those of being open, and ``fixed`` is everything else; their sum can differ from 1 by some
    percent. ``fastest`` is the speedup with one gate of each unit left, and ``error`` the largest relative standard
    error of the timings.
    """

    shares: Mapping[UnitName, float]
    fixed: float
    fastest: float
    error: float = math.inf
    blocks: Mapping[UnitName, float] = field(default_factory=dict)

    def rates(self, gates: HeadGates) -> dict[UnitName, float]:
        """Return the cost of a multiply-accumulate of each unit, its blocks included, relative to the largest."""
        rates = {
            unit: (self.shares[unit] + self.blocks.get(unit, 0.0)) / float(gates.macs_per_gate[gates.is_of(unit)].sum())
            for unit in gates.units
        }
        largest = max(rates.values())
        if not largest > 0:
            raise InputError(
                f"The timings show no time of the gated {' and '.join(gates.units)}, so they are noise "
                f"({margin(self.error)}): use a machine that is less busy, a larger batch or a larger max_seconds."
            )
        # Their errors are larger than what is rounded, and people copy them.
        return {unit: float(f"{rate / largest:.4g}") for unit, rate in rates.items()}

    def keep_for(self, speedup: float, gates: HeadGates) -> float:
        """Return the share of the cost of all gated units that remains at a speedup: one that keeps a gate.

        The search is expected to leave something in each block as long as a twentieth of the units is left, and in
        proportionally fewer below.
        """
        least = HeadBudget(keep=1.0, cost=self.rates(gates)).least_share(gates)
        # A speedup that the noise of the timings may hide is not refused: choices are timed after the search.
        if speedup > self.fastest * (1 + min(self.error, _MOST_ERROR)):
            precision = "" if math.isinf(self.error) else f" (timed {margin(self.error)})"
            raise InputError(
                f"speedup={speedup} cannot be reached by removing these units: with nearly all of them gone, the model "
                f"is {self.fastest:.2f} times as fast here{precision}. Ask for less than that."
            )
        time, units, blocks = 1 / speedup - self.fixed, sum(self.shares.values()), sum(self.blocks.values())
        if time - blocks > _LEAST_LEFT * units:
            share = (time - blocks) / max(units, time - blocks)
        else:
            share = time / (units + blocks / _LEAST_LEFT)
        return min(1.0, max(0.01, least, round(share, 4)))


def measure_latency_costs(gates: HeadGates, timer: CopyTimer) -> LatencyCosts:
    """Fit the latency of units and open blocks to timings of compact copies of a model.

    Copies of several shapes, some with empty blocks, are timed against the dense model, alternately. The fit is linear
    in the shares of the units' multiply-accumulates and of the blocks that are open, and weighs relative errors, so
    that fast models are predicted as well as slow ones. Copies that it can do without are left out when the time is
    over.
    """
    needed, shapes = 2 * len(gates.units) + 1, timed_shapes(gates)
    # The dense model is a point as the copies are.
    points, times = [_amounts(gates, torch.ones_like(shapes[0]))], [1.0]
    for number, kept in enumerate(shapes):
        if number >= needed and timer.affordable <= 1:
            break
        # As many share the time as it is enough for; those that are needed leave a part of it in any case.
        count = max(needed + 0.5 - number, min(len(shapes) - number, timer.affordable), 1.0)
        times.append(1 / timer.time_kept(gates, kept, share=1 / count).speedup)
        points.append(_amounts(gates, kept))
    fixed, *fitted = _fit(points, times, error=statistics.median(found.error for found in timer.timed))
    shares, blocks = fitted[: len(gates.units)], fitted[len(gates.units) :]
    return LatencyCosts(
        shares=dict(zip(gates.units, shares, strict=True)),
        fixed=fixed,
        fastest=1 / min(times),
        error=timer.error,
        blocks=dict(zip(gates.units, blocks, strict=True)),
    )


def _fit(points: Sequence[Sequence[float]], times: Sequence[float], *, error: float) -> list[float]:
    """Return the fixed share and that of each amount, none negative, that fit relative times best.

    Errors are relative. Noise is easily taken for the time of open blocks, since few copies differ in nothing else. So
    these have a prior of 0.03 for the blocks of a unit, with the weight of ``(error / 0.03)^2`` in the sum of squares:
    exact timings hardly feel it.
    """
    rows = torch.tensor([[1.0, *point] for point in points], dtype=torch.float64)
    rows /= torch.tensor(times, dtype=torch.float64).unsqueeze(1)
    num_blocks, weight = len(points[0]) // 2, min(error, _MOST_ERROR) / _PRICE
    prior = weight * torch.eye(rows.shape[1], dtype=torch.float64)[-num_blocks:]
    values = torch.cat([rows.new_ones(len(rows), 1), rows.new_full((num_blocks, 1), weight * _PRICE)])
    columns = [column for column in range(rows.shape[1]) if rows[:, column].any()]
    fitted, rows = [0.0] * rows.shape[1], torch.cat([rows, prior])
    while columns:
        found = torch.linalg.lstsq(rows[:, columns], values).solution.flatten().tolist()
        if min(found) >= 0:
            for column, share in zip(columns, found, strict=True):
                fitted[column] = share
            break
        columns.pop(found.index(min(found)))
    return fitted


def _amounts(gates: HeadGates, kept: Tensor) -> list[float]:
    """Return the shares of each unit's multiply-accumulates, then those of each unit's blocks, that a mask keeps.

    Blocks with one gate are open as long as their unit is there: a second column of them would say the same, and is 0.
    """
    kept, of_units, of_blocks = kept.cpu(), [], []
    for unit in gates.units:
        mask = gates.is_of(unit)
        of_units.append(float(gates.macs_per_gate[mask & kept].sum() / gates.macs_per_gate[mask].sum()))
        parts = zip(kept.split(gates.block_sizes), gates.block_units, strict=True)
        blocks = [part for part, its_unit in parts if its_unit == unit]
        is_open = [bool(part.any()) for part in blocks]
        of_blocks.append(sum(is_open) / len(is_open) if max(map(len, blocks)) > 1 else 0.0)
    return of_units + of_blocks


def timed_shapes(gates: HeadGates) -> list[Tensor]:
    """Return the shapes of the copies that are timed, as masks of gates, ``[num_gates]``.

    A fit needs twice as many as there are units and one more, which come first.
    """

    def same(share: float, every: int = 1) -> dict[UnitName, tuple[float, int]]:
        return dict.fromkeys(gates.units, (share, every))

    # For each unit, the share of the gates that an open block keeps, and every how many-th block is open.
    regular = [
        same(0.0),
        *(same(0.5) | {unit: (1.0, 2)} for unit in gates.units),
        *(same(0.5) | {unit: (1.0, 1)} for unit in gates.units),
        same(0.5, every=2),
        same(0.25),
        *(same(0.5) | {unit: (0.0, 1)} for unit in gates.units),
    ]
    all_counts = [*(_regular_counts(gates, shape) for shape in regular), *_mixed_counts(gates)]
    return [
        torch.cat([torch.arange(size) < count for size, count in zip(gates.block_sizes, counts, strict=True)])
        for counts in all_counts
    ]


def _regular_counts(gates: HeadGates, shape: Mapping[UnitName, tuple[float, int]]) -> list[int]:
    """Return the number of gates that each block keeps, the first one of each unit at least one."""
    counts, seen = [], Counter[UnitName]()
    for size, unit in zip(gates.block_sizes, gates.block_units, strict=True):
        (share, every), number = shape[unit], seen[unit]
        factor = 1.0 if share == 1 else _UNEVEN[number % len(_UNEVEN)]
        count = min(size, round(size * share * factor)) if number % every == 0 else 0
        counts.append(count if number else max(1, count))
        seen[unit] += 1
    return counts


def _mixed_counts(gates: HeadGates) -> Iterator[list[int]]:
    """Yield numbers of gates as a search leaves them: some blocks are empty, and others keep different numbers."""
    generator = torch.Generator().manual_seed(0)
    for empty, most, _ in zip(cycle(_EMPTY), cycle(_MOST), range(_NUM_MIXED), strict=False):
        drawn = torch.rand(len(gates.block_sizes), 2, generator=generator).tolist()
        counts = [
            0 if first < empty else max(1, round(most * size * second))
            for size, (first, second) in zip(gates.block_sizes, drawn, strict=True)
        ]
        yield counts if any(counts) else [1, *counts[1:]]


def check_speedup(speedup: float, **others: object) -> None:
    """Raise ``InputError`` if a speed-up is not above 1, or another budget, such as a share to keep, is given, too."""
    for name, value in others.items():
        if value is not None:
            raise InputError(f"Give either speedup or {name}: got speedup={speedup} and {name}={value}.")
    if not (are_numbers(speedup) and speedup > 1):
        raise InputError(f"speedup={speedup!r} is not a number above 1: give one such as 1.3, or leave it out.")


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
        max_seconds: Seconds that all timings may take together; passes that are needed in any case can exceed it. The
            error that was reached is printed.
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
    return objective


def kept_for_speedup(
    choose: Callable[[float], Tensor],
    measure: Callable[[Tensor], tuple[float, float, bool]],
    *,
    speedup: float,
    keep: float,
) -> Tensor:
    """Return the choice of gates with which the compact model is measured to have a speedup.

    Latency is linear in the kept units only roughly. So copies with the gates that ``choose`` keeps for a share of the
    cost are timed, and the share is moved until the difference is below 5 percent and the error of the timing, or the
    time is over; a warning names a speedup that is further away than 5 percent. ``measure`` returns the speedup of a
    mask, its relative standard error, and whether the time is over.
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
