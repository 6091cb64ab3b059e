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
    """What was seen of a run over all its phases.

    Attributes:
        looks: Its state at each validation.
        gate_values: Gate values by block, at each validation of the search and at its end.
        folded: What was multiplied into the output projection for each head that was kept, by block, in their order; a
            head that is kept though its gate reads 0 comes in with the probability that it is open.
    """

    looks: list[Look] = field(default_factory=list)
    gate_values: list[dict[str, list[float]]] = field(default_factory=list)
    folded: dict[str, list[float]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.looks = [Look(**look) for look in state["looks"]]
        self.gate_values = list(state["gate_values"])
        # Checkpoints of earlier versions have none.
        self.folded = dict(state.get("folded", {}))
