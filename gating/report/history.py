"""Observations of a run at its validations."""

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["History", "Observation"]


@dataclass(frozen=True)
class Observation:
    """The state of a run at one validation.

    Attributes:
        step: Optimizer steps of the run so far.
        metric: Value of the task's metric on validation data.
        expected_open: Expected number of open heads; in recovery, the number of kept heads.
        open: Number of heads with a deterministic gate value above 0.
        target: Number of heads that the objective aims at; NaN for objectives without such a number.
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
        gate_values: Gate values by block, at each validation of the search and at its end.
        folded: For each block, the factors multiplied into the output projection's columns of its kept heads, in their
            order; the probability of being open for a kept head with a closed gate.
    """

    observations: list[Observation] = field(default_factory=list)
    gate_values: list[dict[str, list[float]]] = field(default_factory=list)
    folded: dict[str, list[float]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the history of a checkpoint, also of an earlier version."""
        # "looks" is the key of earlier versions, which have no "folded".
        observations = state["observations"] if "observations" in state else state["looks"]
        self.observations = [Observation(**values) for values in observations]
        self.gate_values = list(state["gate_values"])
        self.folded = dict(state.get("folded", {}))
