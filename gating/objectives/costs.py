"""Costs of gates and prices of open blocks: multiply-accumulates, parameters, the key-value cache, or time."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from gating.errors import InputError, RemedyError
from gating.gates import HeadGates
from gating.units import UNITS

__all__ = ["OPEN_BLOCKS", "Costs", "GateCosts", "check_cost", "gate_costs", "is_share_of_cost"]

# Name, beside those of the units, of the prices of open blocks.
OPEN_BLOCKS = "open_blocks"
Costs = Literal["macs", "parameters", "latency", "cache"] | Mapping[str, Any]


@dataclass(frozen=True)
class GateCosts:
    """Costs of gates and of the blocks that they are in.

    Attributes:
        of_gate: Cost of each gate.
        of_block: Price of each block as long as one of its gates is open.
        block_sizes: Number of gates of each block.
    """

    of_gate: tuple[float, ...]
    of_block: tuple[float, ...]
    block_sizes: tuple[int, ...]

    @property
    def total(self) -> float:
        """Cost of all gates and their blocks."""
        return sum(self.of_gate) + sum(self.of_block)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Share of each gate in the total, which sum to 1: the price of a block is shared equally by its gates."""
        return self._normalized(torch.tensor([cost > 0 for cost in self.of_gate], device="cpu"))

    def spent(self, is_open: Tensor) -> Tensor:
        """Return the share in the total of each open gate, ``[num_gates]``, float64, on the CPU.

        Open gates of a block share its price, so that all of them together have the share that is spent.
        """
        return torch.tensor(self._normalized(is_open.cpu()), dtype=torch.float64, device="cpu")

    def expected(self, prob_open: Tensor) -> float:
        """Return the expected share that is spent: a block is closed if all of its gates are."""
        prob = prob_open.detach().double().cpu()
        own = float(prob @ torch.tensor(self.of_gate, dtype=torch.float64, device="cpu"))
        closed = 1 - prob * torch.tensor([cost > 0 for cost in self.of_gate], device="cpu")
        open_blocks = [1 - float(part.prod()) for part in closed.split(self.block_sizes)]
        return (own + sum(price * share for price, share in zip(self.of_block, open_blocks, strict=True))) / self.total

    def _normalized(self, is_open: Tensor) -> tuple[float, ...]:
        costs = torch.tensor(self.of_gate, dtype=torch.float64, device="cpu") * is_open
        found = []
        for of_gate, price in zip(costs.split(self.block_sizes), self.of_block, strict=True):
            counts = of_gate > 0
            found.append(of_gate + counts * (price / max(1, int(counts.sum()))))
        return tuple((torch.cat(found) / self.total).tolist())


def is_share_of_cost(gates: HeadGates, cost: Costs) -> bool:
    """Return whether a share to keep is one of the cost, not of the number of the only unit."""
    return len(gates.units) > 1 or cost in ("latency", "cache") or isinstance(cost, Mapping)


def check_cost(cost: Costs) -> None:
    """Raise ``InputError`` unless a cost has a known name, or rates that are finite, not negative, and not all zero."""
    if not isinstance(cost, Mapping):
        is_valid = cost in ("macs", "parameters", "latency", "cache")
    else:
        prices = cost.get(OPEN_BLOCKS) or {}
        tables = [{unit: rate for unit, rate in cost.items() if unit != OPEN_BLOCKS}, prices]
        is_valid = all(isinstance(table, Mapping) and all(map(_is_rate, table.items())) for table in tables)
        is_valid = is_valid and any(tables[0].values())
    if not is_valid:
        raise InputError(
            f"cost={cost} cannot be used: give macs, parameters, latency, cache, or the cost of a multiply-accumulate "
            "of each unit, such as {heads: 1.0, neurons: 0.7}, and open_blocks: {heads: 9.0} as prices."
        )


def _is_rate(item: tuple[object, object]) -> bool:
    unit, rate = item
    return unit in UNITS and isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 <= rate < float("inf")


def gate_costs(gates: HeadGates, cost: Costs) -> GateCosts:
    """Return the cost of each gate's units, and the price of each block that is open.

    Args:
        gates: The gates.
        cost: ``macs``: multiply-accumulates of one example; ``parameters``; ``cache``: values that are cached for each
            token in generation; or the cost of a multiply-accumulate of each unit and the price of an open block of
            each, such as ``{"heads": 2.1e-11, "neurons": 1.4e-11, "open_blocks": {"heads": 1e-4, "neurons": 5e-5}}`` in
            seconds.

    Raises:
        InputError: ``cost`` is ``latency``, for which a device must have been timed, or lacks a unit; or it is
            ``cache``, and a block keeps none.
    """
    if cost == "latency":
        raise RemedyError(
            "cost=latency takes the time of a multiply-accumulate of heads and of neurons, which differs by device: ",
            python="give the objective of gating.budget_for_speedup(model, batch, speedup=...), which measures it.",
            command="give objective.cost=macs or objective.cost=parameters.",
        )
    if cost == "cache":
        return GateCosts(_cached_values(gates), (0.0,) * len(gates.block_sizes), tuple(gates.block_sizes))
    numbers = gates.parameters_per_gate if cost == "parameters" else gates.macs_per_gate
    rates: dict[str, Any] = dict(cost) if isinstance(cost, Mapping) else dict.fromkeys(gates.units, 1.0)
    prices = rates.pop(OPEN_BLOCKS, None) or {}
    if missing := set(gates.units) - set(rates):
        raise InputError(f"cost={rates} lacks {missing.pop()}: give the cost of a multiply-accumulate of each unit.")
    # Timings may show no cost; such gates still compete by their scores, and take next to no room.
    rates = {unit: max(rate, 1e-6 * max(rates.values())) for unit, rate in rates.items()}
    # Padding of groups of query heads is never kept for its own sake.
    of_gate = tuple(
        number * rates[unit] if count else 0.0
        for number, unit, count in zip(numbers.tolist(), gates.unit_of_gate, gates.units_per_gate, strict=True)
    )
    of_block = tuple(float(prices.get(unit, 0.0)) for unit in gates.block_units)
    return GateCosts(of_gate, of_block, tuple(gates.block_sizes))


def _cached_values(gates: HeadGates) -> tuple[float, ...]:
    """Return the number of values that each gate's heads cache for a token.

    Raises:
        InputError: A gated block caches nothing, or a gate of it frees nothing.
    """
    values = [float(size.num_cached) if size.num_units else 0.0 for size in gates.gate_sizes]
    bounds = pairwise(accumulate(gates.block_sizes, initial=0))
    for name, unit, kind, (start, end) in zip(
        gates.block_names, gates.block_units, gates.block_kinds, bounds, strict=True
    ):
        if kind == "encoder" or not any(values[start:end]):
            reason = f"its {unit} keep no keys and values of their own for later tokens"
            raise RemedyError(
                f"cost=cache has no cost for {name}: {reason}. Leave the block out with ",
                python="exclude=[...] or units='heads' of inject_gates, or give another cost.",
                command="gates.exclude=[...] or gates.units=heads, or give another objective.cost.",
            )
    return tuple(values)
