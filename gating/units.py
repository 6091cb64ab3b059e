"""The words and settings of the two units, by which reports, budgets and messages speak of them."""

from collections.abc import Collection
from dataclasses import dataclass

from gating.errors import InputError

# Name of a unit in settings: ``heads`` or ``neurons``.
UnitName = str


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Words for a unit in reports and messages, and settings of its gates in a search.

    Attributes:
        label: Its blocks in messages, such as ``attention``.
        expected: Name in the logs of the expected number of open units.
        open: Likewise of the number of open units.
        target: Likewise of the number of units that the objective aims at.
        block: Likewise of the number of open units of a block, with its position among those of the unit to fill in.
        is_weighed: Whether a search weighs each gate by its number of units over the mean, as for small units of which
            single ones do not matter; else it counts units.
        gate_lr: Learning rate of gates that no setting gives; the largest one of all gated units counts.
        fine_tuning: Share of the steps of a training of the dense model that no setting gives, likewise.
        recovery: Share of those after the removal of a search, likewise.
    """

    label: str
    expected: str
    open: str
    target: str
    block: str
    is_weighed: bool = False
    gate_lr: float = 0.1
    fine_tuning: float = 0.0
    recovery: float = 0.0


# Each unit by its name, in the order of their gates.
UNITS: dict[UnitName, Unit] = {
    "heads": Unit(
        label="attention",
        expected="gates/expected_open",
        open="gates/open",
        target="gates/target",
        block="gates/layer_{:02d}/open",
    ),
    "neurons": Unit(
        label="feed-forward",
        expected="gates/neurons/expected",
        open="gates/neurons/open",
        target="gates/neurons/target",
        block="gates/feed_forward_{:02d}/open",
        is_weighed=True,
        # With neurons, it was better in a run at twice the speed on each of three data sets.
        gate_lr=0.2,
        # Most weights go: a ranking of the fine-tuned model, solved and trained on, beats a search (docs/accuracy.md).
        fine_tuning=0.67,
        # Heads alone are few of the weights: a longer descent is worth more (docs/accuracy.md, Plans).
        recovery=0.25,
    ),
}


def check_units(units: Collection[str] | str) -> tuple[UnitName, ...]:
    """Return the names of units in the order of the table, ``heads`` first; raise ``InputError`` for any other."""
    given = units if isinstance(units, Collection) and not isinstance(units, str) else [units]
    if not given or any(unit not in list(UNITS) for unit in given):
        raise InputError(f"units={units!r} must be {', '.join(UNITS)} or both, as in units=['heads', 'neurons'].")
    return tuple(unit for unit in UNITS if unit in given)


def planned_recovery(units: Collection[str] | str, *, is_needed: bool) -> float:
    """Return the share of the steps of a training after the removal of some units, unless a setting gives it.

    Some is needed in any case where the search freezes the weights, or something acts in such a training alone, as
    early stopping and the choice of the best weights do.
    """
    return max(UNITS[unit].recovery for unit in (UNITS if is_needed else check_units(units)))
