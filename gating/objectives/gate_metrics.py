"""The state of the gates in numbers: open heads and neurons, and their share of the cost."""

from collections import Counter
from typing import Literal

import torch
from torch import Tensor

from gating.gates import HeadGates
from gating.objectives.base import HasCost, Objective
from gating.objectives.parts import gate_costs

__all__ = ["Quantity", "gate_metrics", "open_amounts", "quantity_of", "spent_by_unit"]

# The quantity of a budget: a number of heads, a number of neurons, or for both the share of their cost.
Quantity = Literal["heads", "neurons", "cost"]

# Name of the logged target of each quantity.
_TARGETS: dict[Quantity, str] = {
    "heads": "gates/target",
    "neurons": "gates/neurons/target",
    "cost": "gates/cost/target",
}


@torch.no_grad()
def gate_metrics(gates: HeadGates, objective: Objective) -> dict[str, float | Tensor]:
    """Return the state of the gates by the names in the logs."""
    values = gates.values()
    metrics: dict[str, float | Tensor] = {}
    if "heads" in gates.units:
        metrics |= {"gates/expected_open": gates.expected_open(), "gates/open": float(gates.num_open())}
    metrics |= {
        _TARGETS[quantity_of(gates)]: objective.target(gates),
        "gates/undecided": ((values > 0.05) & (values < 0.95)).float().mean(),
    }
    if "neurons" in gates.units:
        metrics |= {
            "gates/neurons/expected": gates.expected_neurons(),
            "gates/neurons/open": float(gates.num_open_neurons()),
        }
    if quantity_of(gates) == "cost":
        expected, num_open = open_amounts(gates, objective)
        metrics |= {"gates/cost/expected": expected, "gates/cost/open": num_open}
        metrics |= {f"gates/cost/{unit}": share for unit, share in spent_by_unit(gates, objective, values > 0).items()}
    return metrics | _open_by_block(gates)


def _open_by_block(gates: HeadGates) -> dict[str, float]:
    """Return the numbers of open heads and neurons of each block, and of heads of each kind or tower if several."""
    attention, feed_forward, groups = list[int](), list[int](), Counter[str]()
    for kind, label, num_open in zip(
        gates.block_kinds, gates.block_groups, gates.open_by_block().values(), strict=True
    ):
        if kind == "feed_forward":
            feed_forward.append(num_open)
        else:
            attention.append(num_open)
            groups[label] += num_open
    metrics = {f"gates/layer_{index:02d}/open": float(num_open) for index, num_open in enumerate(attention)}
    metrics |= {f"gates/feed_forward_{index:02d}/open": float(num_open) for index, num_open in enumerate(feed_forward)}
    if len(groups) > 1:
        metrics |= {f"gates/{label}/open": float(num_open) for label, num_open in groups.items()}
    return metrics


def quantity_of(gates: HeadGates) -> Quantity:
    """Return the quantity of a budget for these gates: heads, neurons, or for both their share of cost."""
    return gates.units[0] if len(gates.units) == 1 else "cost"


@torch.no_grad()
def open_amounts(gates: HeadGates, objective: Objective) -> tuple[float, float]:
    """Return the expected and the actual number of open heads or neurons, or the share of cost of both."""
    if gates.units == ("heads",):
        return float(gates.expected_open()), gates.num_open()
    if gates.units == ("neurons",):
        return float(gates.expected_neurons()), gates.num_open_neurons()
    expected = float(_cost_shares(gates, objective) @ gates.prob_open().cpu().double())
    return expected, sum(spent_by_unit(gates, objective, gates.values() > 0).values())


@torch.no_grad()
def spent_by_unit(gates: HeadGates, objective: Objective, is_open: Tensor) -> dict[str, float]:
    """Return the share of the cost of all gates that the open ones of each unit have.

    Args:
        gates: Gates of heads and neurons.
        objective: The objective, which may have a cost of its own.
        is_open: Boolean mask of the open gates, ``[num_gates]``.
    """
    shares = _cost_shares(gates, objective) * is_open.cpu()
    is_neurons = torch.tensor(gates.neurons_per_gate) > 0
    return {"heads": float(shares[~is_neurons].sum()), "neurons": float(shares[is_neurons].sum())}


def _cost_shares(gates: HeadGates, objective: Objective) -> Tensor:
    """Return the share of each gate in the cost of all, ``[num_gates]``, in the cost that the objective has."""
    cost = objective.cost if isinstance(objective, HasCost) else "macs"
    # Exact numbers of heads and neurons need no measured cost.
    costs = torch.tensor(gate_costs(gates, "macs" if cost == "latency" else cost), dtype=torch.float64)
    return costs / costs.sum()
