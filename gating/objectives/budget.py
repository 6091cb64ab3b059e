"""Budgets: the units or cost to keep, resolved to the parts of the gates that share a limit each."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.costs import Costs, check_cost, gate_costs, is_share_of_cost
from gating.objectives.parts import COST, Part, chosen, parts_of
from gating.units import UNITS, UnitName

# Share of the heads, or of the cost, that a budget without any number keeps.
DEFAULT_KEEP = 0.25

Number = int | Mapping[str, int]
Share = float | Mapping[str, float]


@dataclass(frozen=True)
class HeadBudget:
    """The heads and neurons that an objective keeps.

    With gates on several units, ``keep`` is a share of the cost of all; numbers are exact, and a unit without one keeps
    all. A number or share for each kind of attention, or for each tower, leaves those that it lacks whole.
    """

    num_heads: Number | None = None
    num_neurons: Number | None = None
    keep: Share | None = None
    cost: Costs = "macs"
    min_per_layer: int = 0
    uniform: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.min_per_layer, int) or self.min_per_layer < 0:
            raise InputError(f"min_per_layer={self.min_per_layer} must be a whole number of heads, 0 or more.")
        if not isinstance(self.uniform, bool):
            raise InputError(f"uniform={self.uniform} must be true or false.")
        check_cost(self.cost)

    def __str__(self) -> str:
        """Return the settings that are not the defaults, such as ``num_heads=18``."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        defaults = {one.name: one.default for one in fields(self)}
        return ", ".join(f"{name}={value!r}" for name, value in given.items() if value != defaults[name])

    @property
    def numbers(self) -> dict[UnitName, Number]:
        """The numbers that are given, by unit."""
        found = {unit: getattr(self, f"num_{unit}") for unit in UNITS}
        return {unit: number for unit, number in found.items() if number is not None}

    def parts(self, gates: HeadGates) -> list[Part]:
        """Resolve the budget for some gates to parts with a limit each, which together have every gate.

        A share of units is rounded to a number that the gates can keep. A budget that they cannot keep is an
        ``InputError``.
        """
        keep = self._checked_share(gates)
        if keep is not None and not isinstance(keep, Mapping) and is_share_of_cost(gates, self.cost):
            share = _checked_keep(keep, of="the cost")
            return [_with_limit(part, share, self) for part in self._parts(gates, COST)]
        found = []
        for unit in gates.units:
            number = self.numbers.get(unit)
            parts = self._parts(gates, unit, by=_grouping(number if keep is None else keep, gates))
            if isinstance(number, Mapping):
                _check_kinds(f"num_{unit}", number, parts, gates)
            found += [(part, _of(part, number), _of(part, keep)) for part in parts]
        if isinstance(keep, Mapping):
            _check_kinds("keep", keep, [part for part, _, _ in found], gates)
        resolved = []
        for part, number, share in found:
            # A kind that was left out keeps all its units.
            share = 1.0 if number is None and share is None else share
            limit = resolve_budget(number, share, total=int(part.total), kind=part.kind, unit=part.unit)
            resolved.append(_with_limit(part, limit, self, is_number=number is not None))
        return resolved

    def check(self, gates: HeadGates) -> None:
        """Raise the errors of :meth:`parts`, except that a cost of latency may be timed later."""
        (replace(self, cost="macs") if self.cost == "latency" else self).parts(gates)

    def choose(self, gates: HeadGates, scores: Tensor) -> Tensor:
        """Return the mask, ``[num_gates]``, of the gates with the largest scores that meet the budget."""
        return chosen(self.parts(gates), scores)

    def with_keep(self, keep: float, gates: HeadGates) -> "HeadBudget":
        """Return the budget with another share, or the least one that it can have, in place of its own numbers."""
        no_numbers: dict[str, Any] = {f"num_{unit}": None for unit in self.numbers}
        return replace(self, keep=min(1.0, max(keep, self.least_share(gates))), **no_numbers)

    def least_share(self, gates: HeadGates) -> float:
        """Return the least share of cost that can be kept; 0 for shares of a number of units."""
        if not is_share_of_cost(gates, self.cost):
            return 0.0
        (part,) = self._parts(gates, COST)
        return part.smallest

    def is_of_cost(self, gates: HeadGates) -> bool:
        """Return whether the budget is one share of the cost, also of the only unit."""
        return not self.numbers and not isinstance(self.keep, Mapping) and is_share_of_cost(gates, self.cost)

    def _checked_share(self, gates: HeadGates) -> Share | None:
        """Return the share to keep; None if numbers are given, and all units with a number have gates."""
        given = self.numbers
        keep = DEFAULT_KEEP if not given and self.keep is None else self.keep
        for unit, number in given.items():
            if keep is not None:
                raise InputError(f"Give either num_{unit} or keep: got num_{unit}={number} and keep={keep}.")
            if unit not in gates.units:
                raise InputError(
                    f"num_{unit}={number} cannot be kept: the gates are those of {gates.units[0]}. Leave it out, or "
                    "put gates on both, units=['heads', 'neurons']."
                )
        if self.min_per_layer and "heads" not in gates.units:
            raise InputError(f"min_per_layer={self.min_per_layer} is a number of heads, and the gates are of neurons.")
        return keep

    def _parts(self, gates: HeadGates, unit: UnitName, *, by: Literal["kind", "tower"] | None = None) -> list[Part]:
        options: dict[str, Any] = {"min_per_layer": self.min_per_layer, "uniform": self.uniform}
        if unit == COST or len(gates.units) > 1:
            # Exact numbers of several units need costs only to show them as one share.
            costs = gate_costs(gates, "macs" if self.cost == "latency" and unit != COST else self.cost)
            options["shares"] = (costs / costs.sum()).tolist()
            # Without any kept unit, a layer has a cache, too.
            emptied = gates.least_cached if self.cost == "cache" else []
            options["emptied"] = [cost / float(costs.sum()) for cost in emptied]
        return parts_of(gates, unit=unit, by=by, **options)


def resolve_budget(
    number: int | None, keep: float | None, *, total: int, kind: str | None = None, unit: UnitName = "heads"
) -> int:
    """Return a number or share to keep as a number of units, at least one; raise ``InputError`` if it is none."""
    if (number is None) == (keep is None):
        raise InputError(f"Give either num_{unit} or keep: got num_{unit}={number} and keep={keep}.")
    of_kind = f".{kind}" if kind else ""
    if keep is not None:
        return max(1, round(_checked_keep(keep, of=unit, kind=of_kind) * total))
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= total:
        part = f"{kind} {UNITS[unit].label} of this model" if kind else "this model"
        raise InputError(
            f"num_{unit}{of_kind}={number} cannot be kept: {part} has {total} {unit}, so "
            f"give an integer from 1 to {total}."
        )
    return number


def _with_limit(part: Part, limit: float, budget: HeadBudget, *, is_number: bool = False) -> Part:
    """Return a part with its limit; unless a number was asked for, the nearest that its gates can keep."""
    # Rounded up, so that the number that is shown can be kept.
    least = part.smallest
    shown = f"{math.ceil(1e4 * least) / 1e4:g}"
    if limit * (1 + 1e-9) < least and any(part.least):
        what = f"keep={limit} of the cost is too little" if part.unit == COST else f"{limit} {part.unit} are too few"
        num_blocks, label = sum(map(bool, part.least)), UNITS["heads"].label
        kind = f"{part.kind} " if part.kind else ""
        raise InputError(
            f"{what} for min_per_layer={budget.min_per_layer} in each of {num_blocks} {kind}{label} blocks: that takes "
            f"{shown}. Keep more, or lower min_per_layer."
        )
    if part.unit == COST and limit * (1 + 1e-9) < least:
        raise InputError(
            f"keep={limit} of the cost holds no gate: the smallest takes {shown}. Keep more, or make smaller "
            "groups of neurons."
        )
    if is_number and not part.can_keep(int(limit)):
        raise _inexact(part, int(limit), uniform=budget.uniform)
    return replace(part, limit=limit if is_number else part.nearest(limit))


def _inexact(part: Part, number: int, *, uniform: bool) -> InputError:
    name = f"num_{part.unit}.{part.kind}" if part.kind else f"num_{part.unit}"
    shares = f"a gate stands for up to {max(part.units)} {part.unit}"
    reason = "uniform=true keeps equally many in every layer" if uniform else shares
    near = " or ".join(map(str, part.neighbors(number)))
    return InputError(f"{name}={number} cannot be kept exactly: {reason}. The nearest possible: {near}.")


def _checked_keep(keep: float, *, of: str, kind: str = "") -> float:
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise InputError(
            f"keep{kind}={keep} is not a share of {of}: give a number above 0 and at most 1, such as 0.25."
        )
    return keep


def _grouping(budget: object, gates: HeadGates) -> Literal["kind", "tower"] | None:
    """Return whether a budget is one for each kind of attention or for each tower of a model; None for one number."""
    if not isinstance(budget, Mapping):
        return None
    names_towers = not set(budget) & set(gates.block_kinds) and set(budget) & set(gates.block_towers)
    return "tower" if names_towers else "kind"


def _of(part: Part, budget: Any) -> Any:
    return budget.get(part.kind) if isinstance(budget, Mapping) else budget


def _check_kinds(name: str, budgets: Mapping[str, object], parts: Collection[Part], gates: HeadGates) -> None:
    """Raise ``InputError`` unless the model has every kind of block, or tower, that a budget is for."""
    unknown = [f".{kind}={number}" for kind, number in budgets.items() if kind not in {part.kind for part in parts}]
    if unknown or not budgets:
        towers = [one for one in dict.fromkeys(gates.block_towers) if one not in {part.kind for part in parts}]
        has = [f"{part.kind} ({part.total} {part.unit})" for part in parts] + towers * (len(towers) > 1)
        raise InputError(
            f"{name}{unknown[0] if unknown else '={}'} names no kind of block of this model, which has "
            f"{', '.join(has)}."
        )
