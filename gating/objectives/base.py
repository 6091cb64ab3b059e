"""The base classes of objectives, which decide the gates that close: any, and those with a budget; and their state."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gating.errors import OperationError
from gating.gates import HeadGates
from gating.gates.hard_concrete import FullPrecision
from gating.objectives.budget import DEFAULT_KEEP, HeadBudget
from gating.objectives.costs import Costs
from gating.objectives.parts import Part, amount_of, chosen
from gating.objectives.schedule import BudgetSchedule, DescentStart


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


class KeepsBudget(Objective):
    """An objective that keeps the gates with the largest scores, ``log_alpha`` by default, that meet a budget.

    The budget is resolved to parts of the gates once, in :meth:`attach`; schedule, choice and report read these.

    Attributes:
        measured: ``keep`` and ``cost`` if they are from timings; a resumed search takes those of its checkpoint.
    """

    measured: dict[str, Any] | None = None

    def __init__(
        self,
        *,
        num_heads: int | Mapping[str, int] | None = None,
        num_neurons: int | Mapping[str, int] | None = None,
        keep: float | Mapping[str, float] | None = None,
        cost: Costs = "macs",
        min_per_layer: int = 0,
        uniform: bool = False,
        schedule: BudgetSchedule | None = None,
    ) -> None:
        """Set the budget.

        Args:
            num_heads: Number of heads to keep, or a number for each kind of attention or tower of a model; those that
                are left out keep all.
            num_neurons: Number of neurons to keep.
            keep: Share to keep, instead of numbers, or a share for each kind; a quarter, with a warning, if neither is
                given. With gates on heads and neurons, one share of the cost of both.
            cost: Cost for which heads and neurons compete: ``macs``, ``parameters``, ``cache``, in a run ``latency``,
                which is timed, or a cost of each multiply-accumulate, as in
                :func:`~gating.objectives.costs.gate_costs`. With gates on heads alone, ``cache`` and costs of one's own
                make ``keep`` a share of cost.
            min_per_layer: Least number of heads that every layer keeps when the heads are chosen at the end.
            uniform: Whether all layers keep equally many, for each kind of attention and for neurons.
            schedule: Descent of the number of open heads or neurons, or of the share of cost.

        Raises:
            InputError: An argument is out of range.
        """
        super().__init__()
        self._budget = HeadBudget(num_heads, num_neurons, keep, cost, min_per_layer, uniform)
        self._schedule = BudgetSchedule() if schedule is None else schedule
        self._parts: list[Part] = []
        # The start of the descent, for objectives that follow the loss. A default of the class would hide the module.
        self._start: DescentStart | None = None

    @property
    def cost(self) -> Costs:  # type: ignore[override]
        """The cost for which heads and neurons compete."""
        return self._budget.cost

    def take_measured(self, measured: Mapping[str, Any]) -> None:
        """Take ``keep`` and ``cost`` that were measured, in this process or before the search that is resumed."""
        self.measured = dict(measured)
        self._budget = replace(self._budget, **measured)

    def share_budget(self, other: "KeepsBudget") -> None:
        """Take the budget of another objective, for a search that begins later."""
        self._budget, self.measured = other._budget, other.measured

    def extra_repr(self) -> str:
        """Return the budget."""
        return str(self._budget)

    def check(self, gates: HeadGates) -> None:
        """Raise ``InputError`` if these gates cannot keep the budget."""
        self._budget.check(gates)

    def attach(self, gates: HeadGates) -> None:
        """Resolve the budget for these gates, in a search that begins."""
        self.check(gates)
        if not self._budget.numbers and self._budget.keep is None:
            wanted = "num_heads, num_neurons or keep (settings of objective in a command)"
            warnings.warn(
                f"{type(self).__name__} has no budget, so {DEFAULT_KEEP:.0%} stays: give {wanted}.", stacklevel=2
            )
        parts = self._budget.parts(gates)
        super().attach(gates)
        self._parts = parts

    def kept(self, gates: HeadGates) -> Tensor:
        """Return the gates with the largest scores that meet the budget.

        For gates of another search it is resolved anew; rankings need the search that they are attached to.
        """
        parts = self._parts if self._search_number == gates.search_number else self._budget.parts(gates)
        return chosen(parts, self._scores(gates, parts))

    def order(self, gates: HeadGates) -> Tensor:
        """Return the scores by which the gates of the search are chosen, ``[num_gates]``."""
        return self._scores(gates, self._parts)

    def kept_at(self, gates: HeadGates, keep: float) -> Tensor:
        """Return the gates that stay with another share of the cost, or of the units of gates on one."""
        parts = self._budget.with_keep(keep, gates).parts(gates)
        return chosen(parts, self._scores(gates, parts))

    def shows_cost(self, gates: HeadGates) -> bool:
        """Return whether the budget is a share of cost, and open gates are shown as one."""
        return super().shows_cost(gates) or self._budget.is_of_cost(gates)

    def _scores(self, gates: HeadGates, parts: Sequence[Part]) -> Tensor:
        """Return the score of one unit of size of each gate, ``[num_gates]``."""
        return gates.log_alpha.detach()

    def _limits(self, progress: float, *, total: float = 1.0, start: float | None = None) -> list[float]:
        """Return the number of units, or share of cost, of each part at this share of the search.

        The descent begins with a share ``total`` of all, at the share ``start`` of the search.
        """
        return [
            self._schedule.target(progress, total=max(total * part.total, part.limit), budget=part.limit, start=start)
            for part in self._parts
        ]

    def _amount(self, numbers: Sequence[float]) -> float:
        return amount_of(self._parts, numbers)
