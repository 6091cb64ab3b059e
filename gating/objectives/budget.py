"""Budgets: the units or cost to keep, and the gates with the largest scores that meet it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gating.errors import InputError, RemedyError
from gating.gates import HeadGates
from gating.objectives.costs import Costs, check_cost, gate_costs, is_share_of_cost
from gating.objectives.parts import COST, BudgetPart, parts_of
from gating.units import UNITS, UnitName

__all__ = ["DEFAULT_KEEP", "HeadBudget", "resolve_budget"]

# Share of the heads, or of the cost, that a budget without any number keeps.
DEFAULT_KEEP = 0.25

Number = int | Mapping[str, int]
Share = float | Mapping[str, float]


@dataclass(frozen=True)
class HeadBudget:
    """The heads and neurons that an objective keeps.

    With gates on one unit, ``keep`` is a share of its number. With gates on several, ``keep`` is a share of the cost of
    all of them, for which they compete; numbers of heads and of neurons are exact, and a unit without a number keeps
    all.

    Attributes:
        num_heads: Number of heads to keep, or a number for each kind of attention, such as
            ``{"encoder": 12, "decoder": 8, "cross": 6}``, or for each tower of a model, such as
            ``{"language": 64, "vision": 32}``; those that are left out keep all their heads.
        keep: Share to keep, instead of numbers; one share, or one for each kind of attention and ``feed_forward``, or
            for each tower. A quarter if neither is given.
        min_per_layer: Least number of heads that every attention block with gates keeps.
        num_neurons: Number of neurons to keep.
        cost: Cost of a gate where heads and neurons compete: ``macs``, ``parameters``, ``cache``, or the cost of a
            multiply-accumulate of each and of an open block, as in :func:`~gating.objectives.costs.gate_costs`.
        uniform: Whether all layers keep equally many, for each kind of attention and for neurons.
    """

    num_heads: Number | None = None
    keep: Share | None = None
    min_per_layer: int = 0
    num_neurons: Number | None = None
    cost: Costs = "macs"
    uniform: bool = False
    _cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.min_per_layer, int) or self.min_per_layer < 0:
            raise InputError(f"min_per_layer={self.min_per_layer} must be a whole number of heads, 0 or more.")
        check_cost(self.cost)

    def __str__(self) -> str:
        """Return the settings that are not the defaults, such as ``num_heads=18``."""
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
        defaults = {one.name: one.default for one in fields(self)}
        return ", ".join(f"{name}={value}" for name, value in given.items() if value != defaults[name])

    @property
    def numbers(self) -> dict[UnitName, Number]:
        """The numbers that are given, by unit."""
        found = {unit: getattr(self, f"num_{unit}", None) for unit in UNITS}
        return {unit: number for unit, number in found.items() if number is not None}

    def parts(self, gates: HeadGates) -> list[tuple[BudgetPart, float]]:
        """Return the parts of the gates that have a budget each, with its number of units or share of cost.

        All gates are one part, unless units have numbers, or the budget is one for each kind of attention. A share of
        units is rounded to a number that the gates can keep.

        Raises:
            InputError: The budget is out of range, is for a unit without gates or for a kind of attention that the
                model lacks, is not a multiple of the heads or neurons of a gate, or is too small for ``min_per_layer``.
        """
        # Objectives ask at every step, and a large model has thousands of gates.
        # Gates have a tensor of their own for their work, and a new one once it is measured.
        if self._cache.get("macs") is not gates.macs_per_gate:
            self._cache.update(parts=list(self._resolve(gates)), macs=gates.macs_per_gate)
        parts: list[tuple[BudgetPart, float]] = self._cache["parts"]
        return parts

    def check(self, gates: HeadGates) -> None:
        """Raise the errors of :meth:`parts`, except that a cost of latency may be timed later."""
        if not self._is_one_share and (self.cost == "cache" or (self.cost == "latency" and len(gates.units) == 1)):
            raise InputError(
                f"cost={self.cost} is the cost of one share to keep, and this budget is {self}: give keep=0.5, for "
                "example, instead, or leave cost out."
            )
        (replace(self, cost="macs") if self.cost == "latency" else self).parts(gates)

    def resolve(self, gates: HeadGates) -> float:
        """Return the budget as a number of units of the whole model, or for several units as a share of their cost.

        The errors are those of :meth:`parts`.
        """
        return self.amount(gates, [number for _, number in self.parts(gates)])

    def amount(self, gates: HeadGates, numbers: Sequence[float]) -> float:
        """Return numbers of :meth:`parts` as one: of units, or for several units the share of the cost of all gates."""
        if len(gates.units) == 1:
            return sum(numbers)
        parts = [part for part, _ in self.parts(gates)]
        return sum(part.share * number / part.total for part, number in zip(parts, numbers, strict=True))

    def choose(self, gates: HeadGates, scores: Tensor, *, numbers: Sequence[float] | None = None) -> Tensor:
        """Return the gates with the largest scores that meet the budget: exactly, or up to a share of cost.

        Args:
            gates: The gates.
            scores: Score of one unit of each gate, ``[num_gates]``, or per cost.
            numbers: Number for each of :meth:`parts` that its gates can keep; the budget if left out.

        Returns:
            Boolean tensor, ``[num_gates]``.

        Example:
            >>> from transformers import BertConfig, BertModel
            >>> from gating.gates import create_gates
            >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8)
            >>> gates = create_gates(BertModel(config))
            >>> HeadBudget(num_heads=3, min_per_layer=1).choose(gates, torch.arange(8.0)).nonzero().flatten()
            tensor([3, 6, 7])
        """
        parts, budgets = zip(*self.parts(gates), strict=True)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        for part, number in zip(parts, numbers or budgets, strict=True):
            chosen = chosen.index_fill(0, part.choose(scores.detach(), number), True)
        return chosen

    def with_keep(self, keep: float, gates: HeadGates) -> "HeadBudget":
        """Return the budget with another share, or the least one that it can have, in place of its own numbers."""
        no_numbers: dict[str, Any] = {f"num_{unit}": None for unit in self.numbers}
        keep = min(1.0, max(keep, self.least_share(gates)))
        return replace(self, keep=keep, **no_numbers)

    def least_share(self, gates: HeadGates) -> float:
        """Return the least share of cost that can be kept; 0 for shares of a number of units."""
        if not is_share_of_cost(gates, self.cost):
            return 0.0
        (part,) = self._parts_of(gates, COST, by=None)
        return part.least_share

    def is_share_of_cost(self, gates: HeadGates) -> bool:
        """Return whether the budget is shown as a share of cost, not as a number of the only unit."""
        return len(gates.units) > 1 or (self._is_one_share and is_share_of_cost(gates, self.cost))

    @property
    def _is_one_share(self) -> bool:
        return not self.numbers and not isinstance(self.keep, Mapping)

    def _resolve(self, gates: HeadGates) -> Iterator[tuple[BudgetPart, float]]:
        keep = self._checked_share(gates)
        if keep is not None and not isinstance(keep, Mapping) and is_share_of_cost(gates, self.cost):
            (part,) = self._parts_of(gates, COST, by=None)
            share = _checked_keep(keep, of="the cost")
            part.check(share, exact=False)
            yield part, share
            return
        found = []
        for unit in gates.units:
            number = self.numbers.get(unit)
            budget = number if keep is None else keep
            parts = self._parts_of(gates, unit, by=_grouping(budget, gates))
            if isinstance(number, Mapping):
                _check_kinds(f"num_{unit}", number, parts, gates)
            found += [(part, _of(part, number), _of(part, keep)) for part in parts]
        if isinstance(keep, Mapping):
            _check_kinds("keep", keep, [part for part, _, _ in found], gates)
        for part, number, share in found:
            yield part, self._resolve_part(part, number, share)

    def _checked_share(self, gates: HeadGates) -> Share | None:
        """Return the share to keep; None if numbers are given, and all units with a number have gates."""
        given = self.numbers
        keep = DEFAULT_KEEP if not given and self.keep is None else self.keep
        for unit, number in given.items():
            if keep is not None:
                raise InputError(f"Give either num_{unit} or keep: got num_{unit}={number} and keep={keep}.")
            if unit not in gates.units:
                raise RemedyError(
                    f"num_{unit}={number} cannot be kept: the gates are those of {gates.units[0]}. Leave it out, or ",
                    python='put gates on both with inject_gates(model, units=("heads", "neurons")).',
                    command="put gates on both with gates.units=[heads,neurons].",
                )
        if self.min_per_layer and not any(UNITS[unit].has_minimum for unit in gates.units):
            units = " or ".join(name for name, unit in UNITS.items() if unit.has_minimum)
            raise InputError(
                f"min_per_layer={self.min_per_layer} is a number of {units}, and the gates are of {gates.units[0]}."
            )
        return keep

    def _parts_of(self, gates: HeadGates, unit: UnitName, *, by: Literal["kind", "tower"] | None) -> list[BudgetPart]:
        # Exact numbers of several units need costs only to show them as one share.
        cost = "macs" if unit != COST and not isinstance(self.cost, Mapping) else self.cost
        return parts_of(
            gates,
            by=by,
            unit=unit,
            costs=gate_costs(gates, cost) if unit == COST or len(gates.units) > 1 else None,
            min_per_layer=self.min_per_layer,
            uniform=self.uniform,
        )

    def _resolve_part(self, part: BudgetPart, number: int | None, keep: float | None) -> float:
        # A kind that was left out keeps all its units.
        keep = 1.0 if number is None and keep is None else keep
        budget = resolve_budget(number, keep, total=int(part.total), kind=part.kind, unit=part.unit)
        part.check(budget, exact=number is not None)
        return part.nearest(budget) if number is None else budget


def resolve_budget(
    number: int | None, keep: float | None, *, total: int, kind: str | None = None, unit: UnitName = "heads"
) -> int:
    """Return a budget as a number of units.

    Args:
        number: Number to keep.
        keep: Share to keep, instead; rounded to the nearest number, at least one.
        total: Number of units of the model, or of the kind.
        kind: Kind of blocks of the budget, for the error message; None for a whole model.
        unit: Name of the unit, for the error message.

    Raises:
        InputError: Both or neither were given, or the budget is not between one and all of them.

    Example:
        >>> resolve_budget(None, 0.25, total=72)
        18
    """
    if (number is None) == (keep is None):
        raise InputError(f"Give either num_{unit} or keep: got num_{unit}={number} and keep={keep}.")
    of_kind = f".{kind}" if kind else ""
    if keep is not None:
        return max(1, round(_checked_keep(keep, of=unit, kind=of_kind) * total))
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= total:
        raise InputError(
            f"num_{unit}{of_kind}={number} cannot be kept: {UNITS[unit].part_in_words(kind)} has {total} {unit}, so "
            f"give an integer from 1 to {total}."
        )
    return number


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


def _of(part: BudgetPart, budget: Any) -> Any:
    return budget.get(part.kind) if isinstance(budget, Mapping) else budget


def _check_kinds(name: str, budgets: Mapping[str, object], parts: Sequence[BudgetPart], gates: HeadGates) -> None:
    """Raise ``InputError`` unless the model has every kind of block, or tower, that a budget is for."""
    has = ", ".join(f"{part.kind} ({part.total} {part.unit})" for part in parts)
    kinds = {part.kind for part in parts}
    unknown = [
        f"{name}.{kind}={number}: there is no block of the kind {kind}"
        for kind, number in budgets.items()
        if kind not in kinds
    ]
    if unknown or not budgets:
        problem = unknown[0] if unknown else f"{name}={{}} is empty"
        raise InputError(f"{problem}; give numbers for kinds of blocks that this model has: {has}{_towers(gates)}.")


def _towers(gates: HeadGates) -> str:
    """Return the towers of a model that has several, as the end of a sentence."""
    towers = list(dict.fromkeys(gates.block_towers))
    return f", or for its towers: {', '.join(towers)}" if len(towers) > 1 else ""
