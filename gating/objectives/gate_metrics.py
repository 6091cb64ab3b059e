"""The state of the gates in numbers: open heads and neurons, and their share of the cost."""

from collections import Counter

import torch
from torch import Tensor

from gating.gates import HeadGates
from gating.objectives.base import Objective
from gating.objectives.costs import gate_costs
from gating.objectives.parts import COST
from gating.units import UNITS

__all__ = [
    "Quantity",
    "gate_metrics",
    "metrics_of",
    "open_amounts",
    "quantity_of",
    "share_undecided",
    "spent_by_unit",
]

# The quantity of a budget: the name of a unit for its number, or ``cost`` for the share of cost of several units.
Quantity = str


@torch.no_grad()
def gate_metrics(gates: HeadGates, objective: Objective) -> dict[str, float | Tensor]:
    """Return the state of the gates by the names in the logs."""
    values = gates.values()
    quantity = quantity_of(gates, objective)
    budget: dict[str, float | Tensor] = {
        metrics_of(quantity)[2]: objective.target(gates),
        "gates/undecided": share_undecided(gates),
    }
    metrics: dict[str, float | Tensor] = {}
    # Numbers of few units come first, and the target is beside them.
    for unit in sorted(gates.units, key=lambda unit: UNITS[unit].is_weighed):
        names = UNITS[unit]
        if UNITS[unit].is_weighed:
            metrics |= budget
        metrics |= {names.expected: gates.count_expected(unit), names.open: float(gates.count_open(unit))}
    metrics |= budget
    if quantity == COST:
        expected, num_open = open_amounts(gates, objective)
        metrics |= {"gates/cost/expected": expected, "gates/cost/open": num_open}
        metrics |= {f"gates/cost/{unit}": share for unit, share in spent_by_unit(gates, objective, values > 0).items()}
    return metrics | _open_by_block(gates)


def _open_by_block(gates: HeadGates) -> dict[str, float]:
    """Return the number of open units of each block, and of heads of each kind or tower if several."""
    metrics: dict[str, float] = {}
    positions, groups = Counter[str](), Counter[str]()
    for unit, group, num_open in zip(
        gates.block_units, gates.block_groups, gates.open_by_block().values(), strict=True
    ):
        names = UNITS[unit]
        metrics[names.block.format(positions[unit])] = float(num_open)
        positions[unit] += 1
        if not names.is_weighed:
            groups[group] += num_open
    if len(groups) > 1:
        metrics |= {f"gates/{group}/open": float(num_open) for group, num_open in groups.items()}
    return metrics


def metrics_of(quantity: Quantity) -> tuple[str, str, str]:
    """Return the names in the logs of the expected, the open and the aimed-at amount of a quantity."""
    if quantity == COST:
        return "gates/cost/expected", "gates/cost/open", "gates/cost/target"
    names = UNITS[quantity]
    return names.expected, names.open, names.target


def quantity_of(gates: HeadGates, objective: Objective | None) -> Quantity:
    """Return the quantity of a budget for these gates: their unit, or the share of cost."""
    is_of_cost = len(gates.units) > 1 if objective is None else objective.shows_cost(gates)
    return COST if is_of_cost else gates.units[0]


def share_undecided(gates: HeadGates) -> Tensor:
    """Return the share of gates that are neither open nor closed, a scalar; a sampler's values may be any when open."""
    states = gates.values() if gates.sampler is None else gates.prob_open()
    return ((states > 0.05) & (states < 0.95)).float().mean()


@torch.no_grad()
def open_amounts(gates: HeadGates, objective: Objective) -> tuple[float, float]:
    """Return the expected and the actual number of open units, or the share of cost."""
    if quantity_of(gates, objective) != COST:
        return float(gates.count_expected(gates.units[0])), gates.count_open(gates.units[0])
    expected = float(gates.prob_open().cpu().double() @ _shares(gates, objective))
    return expected, sum(spent_by_unit(gates, objective, gates.values() > 0).values())


@torch.no_grad()
def spent_by_unit(gates: HeadGates, objective: Objective, is_open: Tensor) -> dict[str, float]:
    """Return the share of the cost of all gates that the open ones of each unit have.

    The cost is that of the objective, if it has one of its own.
    """
    shares = _shares(gates, objective) * is_open.cpu()
    return {unit: float(shares[gates.is_of(unit)].sum()) for unit in gates.units}


def _shares(gates: HeadGates, objective: Objective) -> Tensor:
    """Return the share of each gate in the cost that an objective has, ``[num_gates]``, float64, on the CPU."""
    # Exact numbers of heads and neurons need no measured cost.
    costs = gate_costs(gates, "macs" if objective.cost == "latency" else objective.cost)
    return costs / costs.sum()
