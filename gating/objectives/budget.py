"""Budgets: the number of heads to keep, and the gates with the largest scores that meet it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.selection import check_reachable, fewest_heads, nearest_reachable, select_gates

__all__ = ["BudgetPart", "HeadBudget", "parts_of", "resolve_budget"]

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class HeadBudget:
    """The number of heads that an objective keeps.

    Attributes:
        num_heads: Number of heads to keep, or a number for each kind of attention, such as
            ``{"encoder": 12, "decoder": 8, "cross": 6}``; kinds that are left out keep all their heads.
        keep: Share of the heads to keep, instead of a number; one share, or one for each kind of attention. A quarter
            of all heads if neither is given.
        min_per_layer: Least number of heads that every attention block with gates keeps.
    """

    num_heads: int | Mapping[str, int] | None = None
    keep: float | Mapping[str, float] | None = None
    min_per_layer: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.min_per_layer, int) or self.min_per_layer < 0:
            raise InputError(f"min_per_layer={self.min_per_layer} must be a whole number of heads, 0 or more.")

    def parts(self, gates: HeadGates) -> list[tuple["BudgetPart", int]]:
        """Return the parts of the gates that have a budget each, with its number of heads.

        All gates are one part, unless the budget is one for each kind of attention. A share is rounded to a number of
        heads that the gates can keep.

        Raises:
            InputError: The budget is out of range, is for a kind of attention that the model lacks, is not a multiple
                of the heads of a gate, or is too small for ``min_per_layer``.
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
        """Return the budget as a number of heads of the whole model; the errors are those of :meth:`parts`.

        Example:
            >>> from transformers import BertConfig, BertModel
            >>> from gating.gates import create_gates
            >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8)
            >>> HeadBudget(keep=0.4).resolve(create_gates(BertModel(config)))
            3
        """
        return sum(num_heads for _, num_heads in self.parts(gates))

    def choose(self, gates: HeadGates, scores: Tensor, *, num_heads: Sequence[int] | None = None) -> Tensor:
        """Return the gates with the largest scores that stand for exactly the budget.

        Args:
            gates: The gates.
            scores: Score of one head of each gate, ``[num_gates]``.
            num_heads: Number of heads for each of :meth:`parts` that its gates can keep; the budget if left out.

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
        for part, number in zip(parts, num_heads or budgets, strict=True):
            indices = part.choose(scores.detach(), number, min_per_layer=self.min_per_layer)
            chosen = chosen.index_fill(0, indices, True)
        return chosen

    def _resolve_part(self, part: "BudgetPart", num_heads: int | None, keep: float | None) -> int:
        # A kind that was left out keeps all its heads.
        left_out = num_heads is None and keep is None
        budget = resolve_budget(num_heads, 1.0 if left_out else keep, total=part.num_heads, kind=part.kind)
        self._check_minimum(part, budget)
        if num_heads is None:
            return part.nearest(budget, min_per_layer=self.min_per_layer)
        check_reachable(
            budget, part.heads_per_gate, block_sizes=part.block_sizes, min_per_layer=self.min_per_layer, kind=part.kind
        )
        return budget

    def _check_minimum(self, part: "BudgetPart", num_heads: int) -> None:
        """Raise ``InputError`` unless every block has ``min_per_layer`` heads, and the budget allows for them."""
        if not self.min_per_layer:
            return
        first = 0
        for name, size in zip(part.block_names, part.block_sizes, strict=True):
            num_in_block = sum(part.heads_per_gate[first : first + size])
            if num_in_block < self.min_per_layer:
                raise InputError(f"min_per_layer={self.min_per_layer} is more than the {num_in_block} heads of {name}.")
            first += size
        fewest = fewest_heads(part.heads_per_gate, block_sizes=part.block_sizes, min_per_layer=self.min_per_layer)
        if num_heads < fewest:
            raise InputError(
                f"{num_heads} heads are too few for min_per_layer={self.min_per_layer} in each of "
                f"{len(part.block_sizes)} {part.kind + ' ' if part.kind else ''}attention blocks: that takes {fewest}. "
                "Keep more, or lower min_per_layer."
            )


@dataclass(frozen=True)
class BudgetPart:
    """Gates that share a budget.

    Attributes:
        kind: Kind of attention that the gates belong to; None for all gates of a model.
        indices: Indices of the gates among all gates.
        heads_per_gate: Number of heads of each gate.
        block_names: Names of the attention blocks with these gates.
        block_sizes: Number of gates of each block.
    """

    kind: str | None
    indices: tuple[int, ...]
    heads_per_gate: tuple[int, ...]
    block_names: tuple[str, ...]
    block_sizes: tuple[int, ...]

    @property
    def num_heads(self) -> int:
        """Number of heads of all gates of the part."""
        return sum(self.heads_per_gate)

    def nearest(self, num_heads: float, *, min_per_layer: int = 0) -> int:
        """Return the number of heads nearest to ``num_heads`` that these gates can keep."""
        return nearest_reachable(
            round(num_heads), self.heads_per_gate, block_sizes=self.block_sizes, min_per_layer=min_per_layer
        )

    def choose(self, scores: Tensor, num_heads: int, *, min_per_layer: int = 0) -> Tensor:
        """Return the indices, among all gates, of those with the largest scores that stand for ``num_heads`` heads.

        Args:
            scores: Score of one head of each gate of the model, ``[num_gates]``.
            num_heads: Number of heads that these gates can keep, such as that of :meth:`nearest`.
            min_per_layer: Least number of heads that each block keeps.
        """
        indices = torch.tensor(self.indices, device=scores.device)
        chosen = select_gates(
            scores[indices],
            self.heads_per_gate,
            num_heads,
            block_sizes=self.block_sizes,
            min_per_layer=min_per_layer,
        )
        return indices[chosen]


def parts_of(gates: HeadGates, *, by_kind: bool) -> list[BudgetPart]:
    """Return all gates as one part, or one part for each kind of attention, in the order of their first blocks."""
    kinds = dict.fromkeys(gates.block_kinds if by_kind else [None])
    return [_part(gates, kind) for kind in kinds]


def resolve_budget(num_heads: int | None, keep: float | None, *, total: int, kind: str | None = None) -> int:
    """Return a budget as a number of heads.

    Args:
        num_heads: Number of heads to keep.
        keep: Share of the heads to keep, instead; rounded to the nearest number, at least one head.
        total: Number of heads of the model, or of the kind.
        kind: Kind of attention of the budget, for the error message; None for a whole model.

    Raises:
        InputError: Both or neither were given, or the budget is not between one head and all of them.

    Example:
        >>> resolve_budget(None, 0.25, total=72)
        18
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


def _part(gates: HeadGates, kind: str | None) -> BudgetPart:
    indices: list[int] = []
    names, sizes, first = [], [], 0
    for name, size, block_kind in zip(gates.block_names, gates.block_sizes, gates.block_kinds, strict=True):
        if kind in (None, block_kind):
            indices += range(first, first + size)
            names.append(name)
            sizes.append(size)
        first += size
    heads_per_gate = tuple(gates.heads_per_gate[index] for index in indices)
    return BudgetPart(kind, tuple(indices), heads_per_gate, tuple(names), tuple(sizes))


def _of(part: BudgetPart, budget: _Number | Mapping[str, _Number] | None) -> _Number | None:
    if isinstance(budget, Mapping):
        return budget.get(str(part.kind))
    return budget


def _check_kinds(name: str, budgets: Mapping[str, object], parts: Sequence[BudgetPart]) -> None:
    """Raise ``InputError`` unless the model has every kind of attention that a budget is for."""
    has = ", ".join(f"{part.kind} ({part.num_heads} heads)" for part in parts)
    kinds = {part.kind for part in parts}
    unknown = [
        f"{name}.{kind}={number}: there is no {kind} attention" for kind, number in budgets.items() if kind not in kinds
    ]
    if unknown or not budgets:
        problem = unknown[0] if unknown else f"{name}={{}} is empty"
        raise InputError(f"{problem}; give numbers for kinds of attention that this model has: {has}.")
