"""What an objective has to offer, and the reading of budgets."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates

__all__ = ["Objective", "resolve_budget"]


class Objective(Protocol):
    """What decides which heads close.

    An objective is a module: what it has to remember is in its buffers and parameters, and so in a checkpoint.
    Its parameters, if any, are multipliers and are trained by gradient ascent.
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
        """Connect to the gates before training; raise ``ValueError`` as :meth:`check` does."""
        ...

    def update(self, gates: HeadGates, progress: float) -> None:
        """Follow the schedule; called before each training step with the share of the search that is done."""
        ...

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return what is added to the loss of the task: a scalar."""
        ...

    def target(self, gates: HeadGates) -> float:
        """Return how many heads should be open at this moment; NaN where the objective sets no number."""
        ...

    def kept(self, gates: HeadGates) -> Tensor | None:
        """Return which gates would stay if the search ended now, ``[num_gates]``; None keeps those that are open."""
        ...


def resolve_budget(num_heads: int | None, keep: float | None, *, total: int, kind: str | None = None) -> int:
    """Return the number of heads that a budget means for a model.

    Args:
        num_heads: How many heads to keep.
        keep: Which share of the heads to keep, instead; rounded to the nearest number, at least one head.
        total: How many heads the model has.
        kind: The kind of attention that the budget and the total are about; None for all of a model.

    Raises:
        ValueError: Both or neither were given, or the budget does not lie between one head and all of them.
    """
    if (num_heads is None) == (keep is None):
        raise InputError(f"Give either num_heads or keep, not both or neither: got {num_heads} and {keep}.")
    of_kind, has = (f".{kind}", f"{kind} attention of this model") if kind else ("", "this model")
    if keep is not None:
        if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
            raise InputError(
                f"keep{of_kind}={keep} is not a share of heads: give a number above 0 and at most 1, such as 0.25."
            )
        return max(1, round(keep * total))
    if isinstance(num_heads, bool) or not isinstance(num_heads, int) or not 1 <= num_heads <= total:
        raise InputError(
            f"num_heads{of_kind}={num_heads} cannot be kept: {has} has {total} heads, so give 1 to {total}."
        )
    return num_heads
