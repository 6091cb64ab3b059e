"""Costs of gates: multiply-accumulates, parameters, the key-value cache, or a device's time for each."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.hard_concrete import are_numbers
from gating.units import UNITS

Costs = Literal["macs", "parameters", "latency", "cache"] | Mapping[str, float]


def is_share_of_cost(gates: HeadGates, cost: Costs) -> bool:
    """Return whether a share to keep is one of the cost, not of the number of the only unit."""
    return len(gates.units) > 1 or cost in ("latency", "cache") or isinstance(cost, Mapping)


def check_cost(cost: Costs) -> None:
    """Raise ``InputError`` unless a cost has a known name, or rates that are finite, not negative, and not all zero."""
    if isinstance(cost, Mapping):
        are_rates = all(are_numbers(rate) and 0 <= rate < math.inf for rate in cost.values())
        is_valid = are_rates and cost.keys() <= UNITS.keys() and any(cost.values())
    else:
        is_valid = cost in ("macs", "parameters", "latency", "cache")
    if not is_valid:
        raise InputError(
            f"cost={cost} cannot be used: give macs, parameters, latency, cache, or the cost of a multiply-accumulate "
            "of each unit, such as {heads: 1.0, neurons: 0.7}."
        )


def gate_costs(gates: HeadGates, cost: Costs) -> Tensor:
    """Return the cost of each gate's units, ``[num_gates]``, float64, on the CPU; 0 for padding.

    Raises:
        InputError: ``cost`` is ``latency``, for which a device must have been timed, or lacks a unit; or it is
            ``cache``, and a block keeps none.
    """
    if cost == "latency":
        raise InputError(
            "cost=latency takes the time of a multiply-accumulate of heads and of neurons, which differs by device: "
            "give the objective of gating.budget_for_speedup(model, batch, speedup=...), which measures it, or "
            "cost=macs or cost=parameters."
        )
    if cost == "cache":
        return _cached_values(gates)
    rates: Mapping[str, float] = cost if isinstance(cost, Mapping) else dict.fromkeys(gates.units, 1.0)
    if missing := set(gates.units) - set(rates):
        raise InputError(f"cost={rates} lacks {missing.pop()}: give the cost of a multiply-accumulate of each unit.")
    # Timings may show no cost; such gates still compete by their scores, and take next to no room.
    least = 1e-6 * max(rates.values())
    numbers = gates.parameters_per_gate if cost == "parameters" else gates.macs_per_gate
    rate_of_gate = [max(rates[unit], least) for unit in gates.unit_of_gate]
    # Padding of groups of query heads is never kept for its own sake.
    counts = torch.tensor([count > 0 for count in gates.units_per_gate], device="cpu")
    return numbers * torch.tensor(rate_of_gate, dtype=torch.float64, device="cpu") * counts


def _cached_values(gates: HeadGates) -> Tensor:
    """Return the number of values that each gate's heads cache for a token; refuse blocks that cache nothing."""
    values = [float(size.num_cached) if size.num_units else 0.0 for size in gates.gate_sizes]
    for block in gates.gated_blocks():
        if block.kind == "encoder" or not any(values[gate] for gate in block.gates):
            raise InputError(
                f"cost=cache has no cost for {block.name}: a gate on its {block.unit} has no keys and values of its "
                "own for later tokens. Leave it out with exclude=[...] or units=heads of the gates, gate grouped "
                "queries together (group_queries), or give another cost."
            )
    return torch.tensor(values, dtype=torch.float64, device="cpu")
