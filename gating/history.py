"""What was seen of a run while it trained."""

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["History", "Look"]


@dataclass(frozen=True)
class Look:
    """The state of a run at one validation.

    Attributes:
        step: Optimizer steps of the run so far.
        metric: Value of the task's metric on validation data.
        expected_open: Expected number of open heads; all that are kept in recovery.
        open: Number of heads whose deterministic gate is not zero.
        target: How many should be open; NaN where the objective sets no number.
    """

    step: int
    metric: float
    expected_open: float
    open: float
    target: float


@dataclass
class History:
    """The looks at a run over all its phases, and the gate values by block at those of the search and at its end."""

    looks: list[Look] = field(default_factory=list)
    gate_values: list[dict[str, list[float]]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.looks = [Look(**look) for look in state["looks"]]
        self.gate_values = list(state["gate_values"])
