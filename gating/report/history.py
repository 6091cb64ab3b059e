"""Observations of a run at its validations, and the gates at the end of its search."""

from dataclasses import asdict, dataclass, field
from typing import Any

from gating.objectives.gate_metrics import Quantity


@dataclass(frozen=True)
class Observation:
    """The state of a run at one validation.

    Attributes:
        step: Optimizer steps of the run so far.
        metric: Value of the task's metric on validation data.
        expected_open: Expected number of open heads or neurons, or their expected share of cost
            (:attr:`History.quantity`); in recovery, that of the kept ones.
        open: Number of heads or neurons, or their share of cost, with a deterministic gate value above 0.
        target: Number or share that the objective aims at; NaN for objectives without one.
    """

    step: int
    metric: float
    expected_open: float
    open: float
    target: float


@dataclass
class History:
    """Observations of a run over all its phases.

    Attributes:
        observations: The run's state at each validation.
        gate_values: Gate values by block, at the end of the search.
        folded: For each block, the factors multiplied into the output projection's columns of its kept heads, in their
            order, or of its kept groups of neurons; the probability of being open where a kept gate is closed.
        quantity: The quantity of the observations.
        spent: With gates on heads and neurons, the share of the cost of all of them that the kept ones of each kind
            have, after the search.
    """

    observations: list[Observation] = field(default_factory=list)
    gate_values: dict[str, list[float]] = field(default_factory=dict)
    folded: dict[str, list[float]] = field(default_factory=dict)
    quantity: Quantity = "heads"
    spent: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the history of a checkpoint."""
        vars(self).update(state)
        self.observations = [Observation(**values) for values in state["observations"]]
