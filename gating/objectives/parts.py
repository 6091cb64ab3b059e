"""Parts of the gates that have a budget each: the numbers they can keep, and the gates they keep."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gating.errors import InputError, RemedyError
from gating.gates import HeadGates
from gating.objectives.costs import GateCosts
from gating.objectives.selection import Items, check_reachable
from gating.structure.blocks import tower_of
from gating.units import UNITS, UnitName

__all__ = ["COST", "BlockGates", "BudgetPart", "by_rank", "parts_of"]

# Stands in place of a unit's name for a budget that is a share of the cost of all units, for which they compete.
COST = "cost"


class BlockGates(NamedTuple):
    """Name, kind and unit of a block, and the positions of its gates within a part."""

    name: str
    kind: str
    unit: UnitName
    gates: range


@dataclass(frozen=True)
class BudgetPart:
    """Gates that share a budget.

    Attributes:
        name: Name of the part, unique among the parts of a budget.
        unit: What is budgeted: the name of a unit, or ``cost`` for the share of the cost of these gates.
        kind: Kind of blocks, or tower, that the gates belong to; None for all gates with the unit.
        indices: Indices of the gates among all gates.
        units_per_gate: Number of units of each gate.
        costs: Costs of the gates and blocks; None for gates of one unit, which are counted.
        share: Share of the cost of all gates that these gates have.
        blocks: Blocks with these gates.
        min_per_layer: Least number of units that each block keeps, of units that have a minimum.
        uniform: Whether all blocks of a kind keep equally many units.
    """

    name: str
    unit: UnitName
    kind: str | None
    indices: tuple[int, ...]
    units_per_gate: tuple[int, ...]
    costs: GateCosts | None
    share: float
    blocks: tuple[BlockGates, ...]
    min_per_layer: int = 0
    uniform: bool = False

    @property
    def is_weighed(self) -> bool:
        """Whether a search weighs gates by their units or cost over the mean; otherwise it counts units."""
        return self.unit == COST or UNITS[self.unit].is_weighed

    @cached_property
    def total(self) -> float:
        """Number of units of all gates of the part; 1 for a share of cost."""
        return 1.0 if self.unit == COST else sum(self.units_per_gate)

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """Units or share of cost of each gate, which sum to :attr:`total`; with an equal part of its block's price."""
        return self._costs.shares if self.unit == COST else self.units_per_gate

    def nearest(self, number: float) -> float:
        """Return the number of units nearest to ``number`` that these gates can keep; a share as it is."""
        return number if self.unit == COST else self._items.nearest(round(number))

    def check(self, number: float, *, exact: bool) -> None:
        """Raise ``InputError`` unless these gates can keep a number of units, or a share of cost.

        A number that need not be reached exactly is rounded later.
        """
        items = self._items
        for block in self.blocks:
            present = sum(self.units_per_gate[gate] for gate in block.gates)
            if present < self._least_of(block):
                raise InputError(
                    f"min_per_layer={self.min_per_layer} is more than the {present} {block.unit} of {block.name}."
                )
        if self.unit == COST:
            self._check_cost(number)
            return
        if any(items.least) and number < items.fewest:
            self._refuse_minimum(f"{number} {self.unit} are too few", str(items.fewest))
        if exact:
            check_reachable(int(number), items, unit=self.unit, kind=self.kind, uniform=self.uniform)

    def choose(self, scores: Tensor, number: float) -> Tensor:
        """Return the indices, among all gates, of the best gates for a budget.

        Args:
            scores: Score of one unit of each gate of the model, ``[num_gates]``, or per cost.
            number: Number of units that these gates can keep, such as that of :meth:`nearest`: the gates stand for
                exactly it. Or the share of their cost that they may have at most.
        """
        indices = torch.tensor(self.indices, device=scores.device)
        return indices[self.choose_own(scores[indices], number)]

    def choose_own(self, scores: Tensor, number: float) -> Tensor:
        """Return the positions, within the part, of the gates that :meth:`choose` would choose by their scores."""
        if not self.uniform:
            return self._select(scores, number)
        sizes = torch.tensor(self._sizes, device=scores.device, dtype=scores.dtype)
        matrices = [matrix.to(scores.device) for matrix in self.matrices.values()]
        gates = [rank for matrix in matrices for rank in by_rank(matrix, scores).unbind(1)]
        items = torch.stack([(scores[rank] * sizes[rank]).sum() / sizes[rank].sum() for rank in gates])
        return torch.cat([gates[item] for item in self._select(items, number).tolist()])

    @cached_property
    def matrices(self) -> dict[tuple[str, int], Tensor]:
        """Gates of each block by their kind and size, ``[num_blocks, num_gates_per_block]``, for equal layers.

        Raises:
            InputError: Blocks of one kind have different gates.
        """
        found = {}
        for kind in dict.fromkeys(block.kind for block in self.blocks):
            own = [block for block in self.blocks if block.kind == kind]
            for block in own:
                self._check_equal(own[0], block)
            for size in sorted({self.units_per_gate[gate] for gate in own[0].gates} - {0}):
                rows = [[gate for gate in block.gates if self.units_per_gate[gate] == size] for block in own]
                found[kind, size] = torch.tensor(rows, device="cpu")
        return found

    def _check_equal(self, first: BlockGates, block: BlockGates) -> None:
        sizes = [sorted(self.units_per_gate[gate] for gate in each.gates) for each in (first, block)]
        if sizes[0] != sizes[1]:
            raise RemedyError(
                f"Layers cannot keep equally many: {first.name} has {sum(sizes[0])} {block.unit} with {len(sizes[0])} "
                f"gates, and {block.name} has {sum(sizes[1])} with {len(sizes[1])}. Let them differ with ",
                python="uniform=False.",
                command="objective.uniform=false.",
            )

    @cached_property
    def _sizes(self) -> tuple[float, ...]:
        return self._costs.of_gate if self.unit == COST else self.units_per_gate

    @property
    def _costs(self) -> GateCosts:
        assert self.costs is not None
        return self.costs

    @cached_property
    def _items(self) -> Items:
        """The items to choose from: gates, or for equal layers the best gate of every block, the second best ones..."""
        least = {block.kind: self._least_of(block) for block in self.blocks}
        if not self.uniform:
            return Items(
                units=self.units_per_gate,
                groups=tuple(len(block.gates) for block in self.blocks),
                least=tuple(least[block.kind] for block in self.blocks),
                costs=self.costs.of_gate if self.costs else (),
                prices=self.costs.of_block if self.costs else (),
            )
        ranks = [(kind, rank) for (kind, _), matrix in self.matrices.items() for rank in matrix.T.tolist()]
        num_ranks = Counter(kind for kind, _ in ranks)
        num_blocks = Counter(block.kind for block in self.blocks)
        prices = dict.fromkeys(num_ranks, 0.0)
        for block, price in zip(self.blocks, self.costs.of_block if self.costs else (), strict=bool(self.costs)):
            prices[block.kind] += price
        return Items(
            units=tuple(sum(self.units_per_gate[gate] for gate in rank) for _, rank in ranks),
            groups=tuple(num_ranks.values()),
            least=tuple(least[kind] * num_blocks[kind] for kind in num_ranks),
            costs=tuple(sum(self.costs.of_gate[gate] for gate in rank) for _, rank in ranks) if self.costs else (),
            prices=tuple(prices.values()) if self.costs else (),
        )

    def _least_of(self, block: BlockGates) -> int:
        return self.min_per_layer if UNITS[block.unit].has_minimum else 0

    def _select(self, scores: Tensor, number: float) -> Tensor:
        if self.unit == COST:
            return self._items.select_within(scores, number * self._costs.total)
        return self._items.select(scores, int(number))

    def _check_cost(self, share: float) -> None:
        least = self.least_share
        if least <= share * (1 + 1e-9):
            return
        if any(self._items.least):
            self._refuse_minimum(f"keep={share} of the cost is too little", f"{least:.4g}")
        raise InputError(
            f"keep={share} of the cost holds no gate: the smallest takes {least:.4g}. Keep more, or make smaller "
            "groups of neurons."
        )

    @cached_property
    def least_share(self) -> float:
        """Least share of cost that these gates can keep: the cheapest gate with its block, and all minima."""
        items = self._items
        first = items.best_of_each(torch.zeros(len(items.units)))
        return max(items.least_cost, items.cost_of(first)) / self._costs.total

    def _refuse_minimum(self, problem: str, fewest: str) -> None:
        blocks = [block for block in self.blocks if self._least_of(block)]
        kind = f"{self.kind} " if self.kind else ""
        raise InputError(
            f"{problem} for min_per_layer={self.min_per_layer} in each of {len(blocks)} {kind}"
            f"{UNITS[blocks[0].unit].label} blocks: that takes {fewest}. Keep more, or lower min_per_layer."
        )


def by_rank(gates: Tensor, scores: Tensor) -> Tensor:
    """Return the gates of each block, ``[num_blocks, num_gates_per_block]``, with the best one first."""
    return gates.gather(1, scores[gates].argsort(dim=1, descending=True, stable=True))


def parts_of(
    gates: HeadGates,
    *,
    by: Literal["kind", "tower"] | None,
    unit: UnitName | None = None,
    costs: GateCosts | None = None,
    min_per_layer: int = 0,
    uniform: bool = False,
) -> list[BudgetPart]:
    """Return all gates with a unit as one part, or one for each of their kinds or towers, in the order of first blocks.

    Args:
        gates: The gates.
        by: Whether each kind of blocks is a part, such as ``encoder`` or ``feed_forward``, or each tower of the model.
        unit: Unit of the budgets, or ``cost`` of all units; the first unit of the gates if left out.
        costs: Costs of the gates, if there are gates of several units or the budget is one of cost.
        min_per_layer: Least number of units that each block keeps, of units that have a minimum.
        uniform: Whether all blocks of a kind keep equally many.
    """
    unit = unit or gates.units[0]
    # The blocks of each part, and the indices of their gates among all gates.
    groups: dict[str | None, tuple[list[BlockGates], list[int]]] = {}
    start = 0
    for name, kind, own_unit, size in zip(
        gates.block_names, gates.block_kinds, gates.block_units, gates.block_sizes, strict=True
    ):
        if unit in (COST, own_unit):
            group = {"kind": kind, "tower": tower_of(name), None: None}[by]
            blocks, indices = groups.setdefault(group, ([], []))
            blocks.append(BlockGates(name, kind, own_unit, range(len(indices), len(indices) + size)))
            indices += range(start, start + size)
        start += size
    return [
        BudgetPart(
            name=group or unit if by != "tower" else f"{group}_{unit}",
            unit=unit,
            kind=group,
            indices=tuple(indices),
            units_per_gate=tuple(gates.units_per_gate[index] for index in indices),
            costs=costs if unit == COST else None,
            share=sum(costs.shares[index] for index in indices) if costs else 1.0,
            blocks=tuple(blocks),
            min_per_layer=min_per_layer,
            uniform=uniform,
        )
        for group, (blocks, indices) in groups.items()
    ]
