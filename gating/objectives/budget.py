"""How many heads are to be left, and which ones under a given ranking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.base import resolve_budget
from gating.objectives.per_part import BudgetPart, parts_of
from gating.objectives.selection import check_reachable, fewest_heads

__all__ = ["HeadBudget"]

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class HeadBudget:
    """The number of heads that an objective is asked for, with what every layer keeps at least.

    Attributes:
        num_heads: How many heads to keep; or how many of each kind of attention, such as
            ``{"encoder": 12, "decoder": 8, "cross": 6}``, where kinds that are left out keep all of theirs.
        keep: Which share of the heads to keep, instead; of each kind of attention likewise. A quarter of all when
            neither is given.
        min_per_layer: How many heads every attention block with gates keeps at least.
    """

    num_heads: int | Mapping[str, int] | None = None
    keep: float | Mapping[str, float] | None = None
    min_per_layer: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.min_per_layer, int) or self.min_per_layer < 0:
            raise InputError(f"min_per_layer={self.min_per_layer} is no number of heads: give 0, 1, 2 or so.")

    def parts(self, gates: HeadGates) -> list[tuple[BudgetPart, int]]:
        """Return the gates that have a budget together, all of them or those of each kind, with the number of heads.

        A share is rounded to a number of heads that gates can keep.

        Raises:
            ValueError: The budget is out of range, the model lacks the kind of attention it is for, gates for groups of
                heads cannot keep exactly so many, or layers cannot keep what they have to.
        """
        keep = 0.25 if self.num_heads is None and self.keep is None else self.keep
        if self.num_heads is not None and keep is not None:
            raise InputError(f"Give either num_heads or keep, not both: got {self.num_heads} and {keep}.")
        by_kind = isinstance(self.num_heads if keep is None else keep, Mapping)
        parts = parts_of(gates, by_kind=by_kind)
        if isinstance(self.num_heads, Mapping):
            _check_kinds("num_heads", self.num_heads, parts)
        if isinstance(keep, Mapping):
            _check_kinds("keep", keep, parts)
        return [(part, self._resolve_part(part, _of(part, self.num_heads), _of(part, keep))) for part in parts]

    def resolve(self, gates: HeadGates) -> int:
        """Return the budget as a number of heads of the whole model; :meth:`parts` says what is refused."""
        return sum(num_heads for _, num_heads in self.parts(gates))

    def choose(self, gates: HeadGates, scores: Tensor, *, num_heads: Sequence[int] | None = None) -> Tensor:
        """Return which gates have the largest scores and stand for exactly so many heads.

        Args:
            gates: The gates.
            scores: A score for a head of each gate, ``[num_gates]``.
            num_heads: A number that can be kept for each of :meth:`parts`; the budget when left out.

        Returns:
            Truth values, ``[num_gates]``.
        """
        parts, budgets = zip(*self.parts(gates), strict=True)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        for part, number in zip(parts, num_heads or budgets, strict=True):
            indices = part.choose(scores.detach(), number, min_per_layer=self.min_per_layer)
            chosen = chosen.index_fill(0, indices, True)
        return chosen

    def _resolve_part(self, part: BudgetPart, num_heads: int | None, keep: float | None) -> int:
        # A kind that was left out keeps all of its heads.
        left_out = num_heads is None and keep is None
        budget = resolve_budget(num_heads, 1.0 if left_out else keep, total=part.num_heads, kind=part.kind)
        self._check_minimum(part, budget)
        if num_heads is None:
            return part.nearest(budget, min_per_layer=self.min_per_layer)
        check_reachable(
            budget, part.heads_per_gate, block_sizes=part.block_sizes, min_per_layer=self.min_per_layer, kind=part.kind
        )
        return budget

    def _check_minimum(self, part: BudgetPart, num_heads: int) -> None:
        if not self.min_per_layer:
            return
        first = 0
        for name, size in zip(part.block_names, part.block_sizes, strict=True):
            heads = sum(part.heads_per_gate[first : first + size])
            if heads < self.min_per_layer:
                raise InputError(f"min_per_layer={self.min_per_layer} is more than the {heads} heads of {name}.")
            first += size
        fewest = fewest_heads(part.heads_per_gate, block_sizes=part.block_sizes, min_per_layer=self.min_per_layer)
        if num_heads < fewest:
            raise InputError(
                f"{num_heads} heads are too few for min_per_layer={self.min_per_layer} in each of "
                f"{len(part.block_sizes)} {part.kind + ' ' if part.kind else ''}attention blocks: that takes {fewest}. "
                "Keep more, or lower min_per_layer."
            )


def _of(part: BudgetPart, budget: _Number | Mapping[str, _Number] | None) -> _Number | None:
    if isinstance(budget, Mapping):
        return budget.get(str(part.kind))
    return budget


def _check_kinds(name: str, budgets: Mapping[str, object], parts: Sequence[BudgetPart]) -> None:
    """Raise ``ValueError`` unless the model has every kind of attention that a budget is for."""
    has = ", ".join(f"{part.kind} ({part.num_heads} heads)" for part in parts)
    kinds = {part.kind for part in parts}
    unknown = [
        f"{name}.{kind}={number}: there is no {kind} attention" for kind, number in budgets.items() if kind not in kinds
    ]
    if unknown or not budgets:
        what = unknown[0] if unknown else f"{name}={{}} is empty"
        raise InputError(f"{what}; give numbers for kinds of attention that this model has: {has}.")
