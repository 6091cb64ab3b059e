"""The state of the gates in numbers: open heads and neurons, and their share of the cost."""

from collections import Counter

import torch
from torch import Tensor

from gating.gates import HeadGates
from gating.objectives.base import Objective
from gating.objectives.costs import gate_costs
from gating.objectives.parts import COST
from gating.units import UNITS


@torch.no_grad()
def gate_metrics(gates: HeadGates, objective: Objective) -> dict[str, float | Tensor]:
    """Return the state of the gates by the names in the logs."""
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
        # Exact numbers of heads and neurons need no measured cost.
        costs = gate_costs(gates, "macs" if objective.cost == "latency" else objective.cost)
        shares = costs / costs.sum()
        of_open = shares * (gates.values() > 0).cpu()
        spent = {f"gates/cost/{unit}": float(of_open[gates.is_of(unit)].sum()) for unit in gates.units}
        expected = float(gates.prob_open().cpu().double() @ shares)
        metrics |= {"gates/cost/expected": expected, "gates/cost/open": sum(spent.values()), **spent}
    return metrics | _open_by_block(gates)


def _open_by_block(gates: HeadGates) -> dict[str, float]:
    """Return the number of open units of each block, and of heads of each kind or tower if several."""
    metrics: dict[str, float] = {}
    positions, groups = Counter[str](), Counter[str]()
    for block, num_open in zip(gates.gated_blocks(), gates.open_by_block().values(), strict=True):
        names = UNITS[block.unit]
        metrics[names.block.format(positions[block.unit])] = float(num_open)
        positions[block.unit] += 1
        if not names.is_weighed:
            groups[block.group] += num_open
    if len(groups) > 1:
        metrics |= {f"gates/{group}/open": float(num_open) for group, num_open in groups.items()}
    return metrics


def metrics_of(quantity: str) -> tuple[str, str, str]:
    """Return the names in the logs of the expected, the open and the aimed-at amount of a quantity."""
    if quantity == COST:
        return "gates/cost/expected", "gates/cost/open", "gates/cost/target"
    names = UNITS[quantity]
    return names.expected, names.open, names.target


def quantity_of(gates: HeadGates, objective: Objective | None) -> str:
    """Return the quantity of a budget for these gates: the name of their unit, or ``cost`` for a share of cost."""
    is_of_cost = len(gates.units) > 1 if objective is None else objective.shows_cost(gates)
    return COST if is_of_cost else gates.units[0]


def share_undecided(gates: HeadGates) -> Tensor:
    """Return the share of gates that are neither open nor closed, a scalar; a sampler's values may be any when open."""
    states = gates.values() if gates.sampler is None else gates.prob_open()
    return ((states > 0.05) & (states < 0.95)).float().mean()
