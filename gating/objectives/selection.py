"""Selection of items by scores: an exact number of units, or as many as a budget affords.

An item is a gate, or one gate of each block. It has units and a cost. Items come in groups, such as the gates of a
block, and each group may have a minimum of units.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from gating.errors import RemedyError
from gating.objectives.knapsack import fill_budget, select_exactly, values_of
from gating.objectives.open_prices import fill_open_groups
from gating.units import UNITS, UnitName

__all__ = ["Items", "check_reachable"]


@dataclass(frozen=True)
class Items:
    """Items that a selection takes or leaves, in groups of consecutive ones.

    Attributes:
        units: Number of units of each item.
        groups: Number of items of each group: the gates of a block, or the ranks of a kind; needed with ``least``.
        least: Least number of units of each group; no minimum if left out.
        costs: Cost of each item, for budgets of cost.
        prices: Price of each group with a selected item, for budgets of cost.

    Example:
        >>> items = Items((2, 2, 2, 2), groups=(2, 2), least=(1, 1))
        >>> items.nearest(5), items.fewest, Items((2, 2)).has(3)
        (4, 4, False)
    """

    units: tuple[int, ...]
    groups: tuple[int, ...] = ()
    least: tuple[int, ...] = ()
    costs: tuple[float, ...] = ()
    prices: tuple[float, ...] = ()

    def has(self, number: int) -> bool:
        """Return whether some selection has exactly a number of units, and the minimum of each group."""
        return bool(self._reachable >> number & 1)

    def neighbors(self, number: int) -> list[int]:
        """Return the nearest numbers below and above that some selection has, without 0."""
        below = (self._reachable & ((1 << number) - 1)).bit_length() - 1
        higher = self._reachable >> (number + 1)
        above = number + (higher & -higher).bit_length()
        return [near for near in (below if below > 0 else None, above if higher else None) if near is not None]

    def nearest(self, number: int) -> int:
        """Return the nearest number, but not 0, that some selection has."""
        if number and self.has(number):
            return number
        return min(self.neighbors(number), key=lambda near: (abs(near - number), near))

    @property
    def fewest(self) -> int:
        """Smallest number of units with the minimum of each group."""
        return (self._reachable & -self._reachable).bit_length() - 1

    def select(self, scores: Tensor, number: int) -> Tensor:
        """Return the indices of items with the largest scores that have exactly a number of units; minima come first.

        If items have different numbers of units, the selection maximizes the sum of score times units.

        Args:
            scores: Score of one unit of each item, ``[num_items]``.
            number: A number that some selection has.

        Example:
            >>> Items((1, 1, 1, 1)).select(torch.tensor([0.3, 0.9, 0.8, 0.1]), 2).tolist()
            [1, 2]
            >>> Items((2, 1, 1, 2)).select(torch.tensor([0.3, 0.9, 0.8, 0.1]), 3).tolist()
            [0, 1]
        """
        least = self.least if any(self.least) else ()
        different = set(self.units) - {0}
        if len(different) == 1:
            size = different.pop()
            candidates = scores
            if 0 in self.units:
                candidates = scores.masked_fill(torch.tensor(self.units, device=scores.device) == 0, -torch.inf)
            if least:
                candidates = _favor_best_of_each(candidates, self.groups, [-(-number // size) for number in least])
            return candidates.topk(number // size).indices
        values = scores.double().cpu() * torch.tensor(self.units)
        return select_exactly(values, self.units, number, groups=self.groups, least=least).to(scores.device)

    def select_within(self, scores: Tensor, budget: float) -> Tensor:
        """Return the indices of items with the largest scores whose cost is at most the budget; minima come first.

        The selection maximizes the sum of :func:`~gating.objectives.knapsack.values_of`, and leaves no room for another
        item. With prices of groups it is the sum of costs that are worth their place, in which scores around the
        threshold of the budget count.

        Args:
            scores: Score per unit of cost of each item, ``[num_items]``.
            budget: Largest sum of costs, and of the prices of groups with a selected item.

        Example:
            >>> items = Items((0, 0, 0, 1), (3, 1), (0, 1), costs=(2.0, 1.0, 1.0, 2.0))
            >>> items.select_within(torch.tensor([0.3, 0.9, 0.8, 0.1]), 3.0).tolist()
            [3, 1]
        """
        first = self.best_of_each(scores)
        sizes = torch.tensor(self.costs)
        values = sizes * self._worth(scores, budget) if any(self.prices) else values_of(scores, sizes)
        taken = set(first)
        costs = [0.0 if index in taken else cost for index, cost in enumerate(self.costs)]
        room = budget - self.cost_of(first)
        if any(self.prices):
            paid = self._groups_of(first)
            prices = [0.0 if group in paid else price for group, price in enumerate(self.prices)]
            others = fill_open_groups(values, costs, room, groups=self.groups, prices=prices)
        else:
            others = fill_budget(values, costs, room)
        return torch.cat([torch.tensor(first, dtype=torch.int64), others]).to(scores.device)

    def _worth(self, scores: Tensor, budget: float) -> Tensor:
        """Return how much one unit of cost of each item is worth, 0 to 1, ``[num_items]``, float64, on the CPU.

        It is a sigmoid around the score at which the items in their order, each with the price of its group if it is
        the first one there, use up the budget. Without this threshold, items that are far below it would be worth a
        part of those above, and many of them would take the place of a good group.
        """
        scores = scores.detach().double().cpu()
        order = scores.argsort(descending=True, stable=True).tolist()
        spent, opened, threshold = 0.0, set[int](), float(scores.min())
        for item in (item for item in order if self.costs[item]):
            group = bisect_right(self._ends, item)
            spent += self.costs[item] + (0.0 if group in opened else self.prices[group])
            opened.add(group)
            if spent > budget:
                threshold = float(scores[item])
                break
        width = float(scores.std()) / 2 if len(order) > 1 else 0.0
        return torch.sigmoid((scores - threshold) / max(width, 1e-6)).clamp_min(1e-6)

    def cost_of(self, items: Sequence[int]) -> float:
        """Return the cost of some items and their groups."""
        prices = sum(self.prices[group] for group in self._groups_of(items)) if self.prices else 0.0
        return sum(self.costs[item] for item in items) + prices

    @property
    def least_cost(self) -> float:
        """Cost of the cheapest selection of one item."""
        return min(self.cost_of([item]) for item, cost in enumerate(self.costs) if cost)

    def _groups_of(self, items: Sequence[int]) -> set[int]:
        return {bisect_right(self._ends, item) for item in items}

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.groups))

    def best_of_each(self, scores: Tensor) -> list[int]:
        """Select the best items of each group until it has its minimum of units."""
        selected = []
        order = scores.argsort(descending=True, stable=True).tolist() if any(self.least) else []
        for (start, end), minimum in self._bounds():
            missing = minimum
            for index in (index for index in order if start <= index < end and self.units[index]):
                if missing <= 0:
                    break
                selected.append(index)
                missing -= self.units[index]
        return selected

    @cached_property
    def _reachable(self) -> int:
        """An integer whose bit ``n`` is set if some items together have ``n`` units, and the minima."""
        if not any(self.least):
            return _sums(self.units)
        total = 1
        for (start, end), minimum in self._bounds():
            combined = 0
            for size in _set_bits(_sums(self.units[start:end]) >> minimum << minimum):
                combined |= total << size
            total = combined
        return total

    def _bounds(self) -> Iterator[tuple[tuple[int, int], int]]:
        """Yield the first and the last position of each group with a minimum, and the minimum."""
        yield from zip(pairwise(accumulate(self.groups, initial=0)), self.least, strict=bool(self.least))


def check_reachable(
    number: int, items: Items, *, unit: UnitName = "heads", kind: str | None = None, uniform: bool = False
) -> None:
    """Raise ``RemedyError`` unless some selection has exactly ``number`` units, which the message names."""
    if not 1 <= number <= sum(items.units) or items.has(number):
        return
    name = f"num_{unit}.{kind}" if kind else f"num_{unit}"
    neighbors = items.neighbors(number)
    near = f"number{'s are' if len(neighbors) > 1 else ' is'} {' or '.join(map(str, neighbors))}"
    if uniform:
        reason = "uniform=true keeps equally many in every layer"
        remedy, python, command = "let layers differ with ", "uniform=False.", "objective.uniform=false."
    else:
        reason, remedy, python, command = UNITS[unit].why_inexact
        reason = reason.format(max(items.units))
    problem = f"{name}={number} cannot be kept exactly: {reason}. The nearest possible {near}; or {remedy}"
    raise RemedyError(problem, python=python, command=command)


def _favor_best_of_each(scores: Tensor, groups: Sequence[int], num_items: Sequence[int]) -> Tensor:
    """Return the scores with infinity for the best items of each group."""
    favored = scores.clone()
    for group, number in zip(favored.split(list(groups)), num_items, strict=True):
        group.index_fill_(0, group.topk(number).indices, torch.inf)
    return favored


def _sums(sizes: Sequence[int]) -> int:
    """Return an integer whose bit ``n`` is set if some sizes sum to ``n``."""
    sums = 1
    for size in sorted(set(sizes) - {0}):
        # Powers of two and a rest make every number of items of one size.
        left, power = sizes.count(size), 1
        while left:
            number = min(power, left)
            sums |= sums << number * size
            left, power = left - number, 2 * power
    return sums


def _set_bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
