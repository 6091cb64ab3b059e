"""The base class of objectives, which decide the gates that close, and the state that is in their checkpoints."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gating.errors import InputError, OperationError
from gating.gates import HeadGates
from gating.gates.hard_concrete import FullPrecision
from gating.objectives.costs import Costs

__all__ = ["HostNumbers", "NoObjective", "Objective", "OfOneSearch", "check_objective"]


class OfOneSearch(FullPrecision):
    """A module with the state of one search, which refuses the gates of another one."""

    _search_number: int | None = None

    def check_search(self, gates: HeadGates) -> None:
        """Raise ``OperationError`` unless the state is that of the search of these gates."""
        if self._search_number is None:
            raise OperationError("The objective is not attached to these gates: call its attach(gates) first.")
        if self._search_number != gates.search_number:
            raise OperationError(
                f"This {type(self).__name__} was attached to other gates since, or these gates to another objective, "
                "and an objective has the state of one search: make a new one for each search, or call attach(gates) "
                "of this one to begin anew."
            )


class Objective(OfOneSearch):
    """Base class of objectives, which decide the gates that close.

    An objective is a module, so that its buffers and parameters are in checkpoints. Its parameters, if any, are
    multipliers and are trained by gradient ascent. A subclass overrides what it needs; by default there is no penalty
    and no budget, and open gates stay.

    Attributes:
        cost: The cost for which heads and neurons compete.
        learns_values: Whether the values of open gates are learned after the choice, so that a choice that stays the
            same does not end the search.
    """

    cost: Costs = "macs"
    learns_values = False

    def check(self, gates: HeadGates) -> None:
        """Raise :class:`~gating.errors.InputError` if the objective does not fit the gates; change nothing.

        The gates need not be attached to a model: those of :func:`~gating.gates.create_gates` are enough.
        """

    def attach(self, gates: HeadGates) -> None:
        """Connect to the gates before training, and begin anew; the errors are those of :meth:`check`.

        An objective that was used before, for this model or another, then chooses as a new one does.
        """
        self._search_number = gates.follow(self)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Follow the schedule before a training step.

        Args:
            gates: The gates.
            progress: Share of the search that is done, 0 to 1.

        Raises:
            OperationError: The objective is not attached to these gates.
        """
        self.check_search(gates)

    def observe(self, loss: Tensor) -> None:
        """Add the loss of a training batch, a scalar without gradient; called after each forward pass."""

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return the term to add to the loss of the task, a scalar."""
        return gates.log_alpha.new_zeros(())

    def target(self, gates: HeadGates) -> float:
        """Return the number of heads that should be open now; NaN if the objective sets none.

        With gates on neurons alone, the number of neurons; with gates on both, the share of their cost, 0 to 1.
        """
        return math.nan

    def kept(self, gates: HeadGates) -> Tensor | None:
        """Return the gates that stay if the search ends now, a boolean tensor ``[num_gates]``; None: the open ones."""
        return None

    def shows_cost(self, gates: HeadGates) -> bool:
        """Return whether open gates are shown as a share of the cost, not as a number of the only unit."""
        return len(gates.units) > 1


class NoObjective(Objective):
    """An objective that keeps every head and neuron; a run with it injects no gates."""

    def attach(self, gates: HeadGates) -> None:
        """Open every gate permanently."""
        super().attach(gates)
        gates.log_alpha.requires_grad_(False)
        # The hard-concrete distribution of such locations has no value but 1.
        gates.constraint = nn.Threshold(1e3, 1e3)

    def target(self, gates: HeadGates) -> float:
        """Return the number of all heads or neurons, or one as the share of cost."""
        return float(gates.total(gates.units[0])) if len(gates.units) == 1 else 1.0

    def kept(self, gates: HeadGates) -> Tensor:
        """Return True for every gate, ``[num_gates]``."""
        return torch.ones_like(gates.log_alpha, dtype=torch.bool)


class HostNumbers(nn.Module):
    """Numbers such as those of open heads, in host memory, that are in checkpoints, too.

    A buffer would be on the device, and each step would wait for it.

    Attributes:
        values: The numbers.
    """

    def __init__(self, values: Sequence[float]) -> None:
        """Set the first numbers."""
        super().__init__()
        self.values = list(values)

    def get_extra_state(self) -> Tensor:
        """Return the numbers for a checkpoint."""
        return torch.tensor(self.values, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Load the numbers from a checkpoint."""
        self.values = state.tolist()


def check_objective(objective: Any) -> None:
    """Raise ``InputError`` for anything but an objective, such as its class."""
    if not isinstance(objective, Objective):
        raise InputError(
            f"objective={objective!r} is no objective: give one, such as gating.ExactBudget(num_heads=18); a class of "
            "your own is a subclass of gating.Objective."
        )
