"""The plan of a training: the shares of its steps that train the dense model, search for units, and recover."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gating.errors import InputError
from gating.units import UNITS, check_units, planned_recovery

# Share of the steps that train the dense model where it is the teacher of the others.
_TEACHING = 0.5
# Of shares, which may not add up to 1 exactly.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Plan:
    """Shares of the steps of a training; the rest is the search.

    Attributes:
        fine_tuning: Share that trains the dense model, before anything closes.
        recovery: Share that trains the compact model, after the removal.

    Raises:
        InputError: A share is out of range, or both are more than all steps.
    """

    fine_tuning: float
    recovery: float

    def __post_init__(self) -> None:
        for name in ("fine_tuning", "recovery"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"{name}={getattr(self, name)} is not a share of the steps: give a number from 0 to 1."
                )
        if self.fine_tuning + self.recovery > 1 + _ROUNDING:
            raise InputError(
                f"fine_tuning={self.fine_tuning} and recovery={self.recovery} are more than all steps: give shares "
                "whose sum is at most 1."
            )

    @property
    def ranks(self) -> bool:
        """Whether no step is left for a search, so that the units of the fine-tuned model are ranked instead."""
        return self.fine_tuning + self.recovery >= 1 - _ROUNDING

    def steps(self, total: int) -> tuple[int, int]:
        """Return the numbers of steps of the dense model and of the search, of ``total`` steps."""
        dense = max(1, round(self.fine_tuning * total)) if self.fine_tuning else 0
        if self.ranks:
            return min(dense, total), 0
        return dense, max(1, round((1 - self.recovery) * total) - dense)


def check_sizes(name: str, values: Sequence[object]) -> None:
    """Raise ``InputError`` for a list of budgets that are not numbers, or of which one stands twice."""
    are_numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if not are_numbers or len(set(values)) < max(2, len(values)):
        raise InputError(f"{name}={list(values)} is no list of sizes: give two numbers or more, each once.")


def make_plan(
    units: Collection[str] | str,
    *,
    fine_tuning: float | None,
    recovery: float | None,
    can_rank: bool,
    is_default: bool,
    has_sizes: bool = False,
    is_frozen: bool,
    learns_from_itself: bool,
    is_needed: bool,
) -> Plan:
    """Return the plan of a training, by settings or by default.

    Args:
        units: Units with gates, such as ``heads``.
        fine_tuning: Share of the steps of the dense model; None for the default.
        recovery: Share of the steps after the removal; None for the default.
        can_rank: Whether the objective can choose units without a search: by its ranking, or for its budget.
        is_default: Whether the objective is the default one, whose plan depends on the units.
        has_sizes: Whether several sizes share the dense model, which needs one.
        is_frozen: Whether the search freezes the weights.
        learns_from_itself: Whether the model learns from its own dense state.
        is_needed: Whether something acts in a recovery alone, as early stopping does.
    """
    if fine_tuning is None:
        fine_tuning = 0.0
        if not is_frozen:
            plans = [UNITS[unit].fine_tuning for unit in (UNITS if has_sizes else check_units(units))]
            of_units = max(plans) if is_default or has_sizes else 0.0
            fine_tuning = of_units or _TEACHING * learns_from_itself
            if recovery is not None and 0 <= recovery <= 1 and fine_tuning:
                # A default that ranks leaves nothing to a search, and others no more than there is.
                fine_tuning = round(1 - recovery, 6) if of_units and can_rank else min(fine_tuning, 1 - recovery)
    if recovery is None:
        ranks = bool(fine_tuning) and can_rank and not is_frozen
        # Of decimal shares, the rest is one, too.
        recovery = round(1 - fine_tuning, 6) if ranks else planned_recovery(units, is_needed=is_needed)
    return Plan(fine_tuning, recovery)
