"""Observations of a run at its validations."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gating.objectives.gate_metrics import Quantity
from gating.report.rows import KeptHeads

__all__ = ["History", "Observation", "head_values"]


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
        gate_values: Gate values by block, at each validation of the search and at its end.
        folded: For each block, the factors multiplied into the output projection's columns of its kept heads, in their
            order, or of its kept groups of neurons; the probability of being open where a kept gate is closed.
        quantity: The quantity of the observations.
        spent: With gates on heads and neurons, the share of the cost of all of them that the kept ones of each kind
            have, after the search.
        is_moved: Whether the choice of the objective was changed after the search, by timing compact copies.
    """

    observations: list[Observation] = field(default_factory=list)
    gate_values: list[dict[str, list[float]]] = field(default_factory=list)
    folded: dict[str, list[float]] = field(default_factory=dict)
    quantity: Quantity = "heads"
    spent: dict[str, float] = field(default_factory=dict)
    is_moved: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the history of a checkpoint."""
        vars(self).update(state)
        self.observations = [Observation(**values) for values in state["observations"]]


def head_values(
    history: History, kept: Sequence[KeptHeads], *, index: int = -1, is_folded: bool = False
) -> dict[str, list[float]]:
    """Return a gate value for every gated head, by the attention block's name.

    Args:
        history: A history with gate values.
        kept: The kept heads of each attention block.
        index: Position in :attr:`History.gate_values`; by default the end of the search.
        is_folded: Whether kept heads have their folded factor instead.
    """
    attention = {name for name, _, _ in kept}
    values = history.gate_values[index]
    # With gates on heads alone, attention blocks may have gone by other names.
    shown = {name: gates for name, gates in values.items() if history.quantity == "heads" or name in attention}
    for name, heads, num_heads in kept:
        if gates := shown.get(name):
            # A gate of a group stands for several heads.
            shown[name] = [gates[head * len(gates) // num_heads] for head in range(num_heads)]
            for head, value in zip(heads, history.folded.get(name, ()) if is_folded else (), strict=False):
                shown[name][head] = value
    return shown
