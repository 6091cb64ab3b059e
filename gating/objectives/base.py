"""The interface of objectives, those with a budget, and the search that connects an objective and its gates."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from gating.errors import InputError, OperationError
from gating.gates import HeadGates
from gating.gates.hard_concrete import FullPrecision
from gating.objectives.budget import HeadBudget
from gating.objectives.costs import Costs
from gating.objectives.schedule import BudgetSchedule

__all__ = [
    "NOT_ATTACHED",
    "FollowsLoss",
    "HasMovableBudget",
    "KeepsBudget",
    "Objective",
    "begin_search",
    "check_objective",
    "check_search",
]

NOT_ATTACHED = "The objective is not attached to these gates: call its attach(gates) first."


class Objective(Protocol):
    """Objectives decide which gates close.

    An objective is a module, so that its buffers and parameters are in checkpoints. Its parameters, if any, are
    multipliers and are trained by gradient ascent.
    """

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the multipliers."""
        ...

    def check(self, gates: HeadGates) -> None:
        """Raise :class:`~gating.errors.InputError` if the objective does not fit the gates; change nothing.

        The gates need not be attached to a model: those of :func:`~gating.gates.create_gates` are enough.
        """
        ...

    def attach(self, gates: HeadGates) -> None:
        """Connect to the gates before training, and begin anew; the errors are those of :meth:`check`.

        An objective that was used before, for this model or another, then chooses as a new one does.
        """
        ...

    def update(self, gates: HeadGates, progress: float) -> None:
        """Follow the schedule before a training step.

        Args:
            gates: The gates.
            progress: Share of the search that is done, 0 to 1.
        """
        ...

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return the term to add to the loss of the task, a scalar."""
        ...

    def target(self, gates: HeadGates) -> float:
        """Return the number of heads that should be open now; NaN if the objective sets none.

        With gates on neurons alone, the number of neurons; with gates on both, the share of their cost, 0 to 1.
        """
        ...

    def kept(self, gates: HeadGates) -> Tensor | None:
        """Return the gates that stay if the search ends now, a boolean tensor ``[num_gates]``; None: the open ones."""
        ...


@runtime_checkable
class HasMovableBudget(Protocol):
    """Objectives that can choose for another budget than the one they were trained for."""

    def kept_at(self, gates: HeadGates, keep: float) -> Tensor:
        """Return the gates that stay with a share ``keep`` of the cost, a boolean tensor ``[num_gates]``."""
        ...


@runtime_checkable
class FollowsLoss(Protocol):
    """Objectives whose schedule follows the training loss."""

    def observe(self, loss: Tensor) -> None:
        """Add the loss of a training batch, a scalar without gradient; called after each forward pass."""
        ...


class KeepsBudget(FullPrecision):
    """An objective that keeps the gates with the largest ``log_alpha`` that meet a budget, which a schedule ends at."""

    def __init__(self, budget: HeadBudget, schedule: BudgetSchedule | None) -> None:
        super().__init__()
        if isinstance(schedule, type) or not (schedule is None or hasattr(schedule, "target")):
            raise InputError(f"schedule={schedule!r} is no schedule: give one such as gating.BudgetSchedule(end=0.5).")
        self._budget = budget
        self._schedule = BudgetSchedule() if schedule is None else schedule

    @property
    def cost(self) -> Costs:
        """The cost for which heads and neurons compete."""
        return self._budget.cost

    def extra_repr(self) -> str:
        """Return the budget."""
        return str(self._budget)

    def check(self, gates: HeadGates) -> None:
        """Raise ``InputError`` if these gates cannot keep the budget."""
        self._budget.check(gates)

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return zero: the budget is met by construction."""
        return gates.log_alpha.new_zeros(())

    def kept(self, gates: HeadGates) -> Tensor:
        """Return the gates with the largest ``log_alpha`` that meet the budget."""
        return self._budget.choose(gates, gates.log_alpha)

    def kept_at(self, gates: HeadGates, keep: float) -> Tensor:
        """Return the gates that stay with another share of the cost, or of the units of gates on one."""
        return self._budget.with_keep(keep, gates).choose(gates, gates.log_alpha)

    def is_share_of_cost(self, gates: HeadGates) -> bool:
        """Return whether the budget is a share of cost, and open gates are shown as one."""
        return self._budget.is_share_of_cost(gates)


def check_objective(objective: object) -> None:
    """Raise ``InputError`` for anything but an objective, such as its class."""
    # An objective of a user need not have `check`: its `attach` checks, too.
    needed = [name for name in vars(Objective) if name[0] != "_" and name != "check"]
    missing = [name for name in needed if not hasattr(objective, name)]
    if missing or isinstance(objective, type):
        name = objective.__name__ if isinstance(objective, type) else repr(objective)
        problem = "is a class" if isinstance(objective, type) else f"has no method {missing[0]}"
        raise InputError(f"objective={name} {problem}: give an objective, such as gating.ExactBudget(num_heads=18).")


def begin_search(part: Any, gates: HeadGates, *, number: int | None = None) -> None:
    """Let an objective, which the gates follow from now on, or a part of one remember the search that it is used in.

    The search is a new one, unless its number is given.
    """
    part._search_number = gates.follow(part) if number is None else number


def check_search(part: Any, gates: HeadGates) -> None:
    """Raise ``OperationError`` if an objective, or a part of one, has the state of another search than the gates'."""
    number = getattr(part, "_search_number", None)
    if number is not None and number != gates.search_number:
        raise OperationError(
            f"This {type(part).__name__} was attached to other gates since, or these gates to another objective, and "
            "an objective has the state of one search: make a new one for each search, or call attach(gates) of this "
            "one to begin anew."
        )
