"""Knapsacks whose items come in groups with a price of being open: the exact choice of gates for a measured speed.

A block of a model takes time as soon as it keeps one unit. So the choice is which blocks stay open, and which of their
gates stay in the room that is left (a knapsack with fixed charges).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from gating.objectives.knapsack import fill_budget

__all__ = ["fill_open_groups"]

# Largest number of groups of which all sets are compared; beyond it, sets near the best one by prices.
_MAX_ENUMERATED = 12
# Number of items, or of quantiles of items, at which the value of a set of groups is computed.
_MAX_POINTS = 256
# Rounds of exchanges of groups, and number of sets that are filled with whole items.
_MAX_ROUNDS, _MAX_FILLED = 16, 4
_ROUNDING = 1e-9


def fill_open_groups(
    values: Tensor, sizes: Sequence[float], budget: float, *, groups: Sequence[int], prices: Sequence[float]
) -> Tensor:
    """Select the items with the largest sum of values, where each group with a selected item has a price.

    Sets of open groups are compared by their fractional knapsack, which bounds the value of any selection, and the best
    ones are filled by :func:`~gating.objectives.knapsack.fill_budget`. All sets are compared if there are at most 12
    groups. Otherwise the search begins with the set that is best for one price of size (Lagrangian relaxation), and
    with all groups, and opens, closes and exchanges groups while that is better.

    Args:
        values: Value of each item, ``[num_items]``, above zero.
        sizes: Size of each item; items of size zero are not selected.
        budget: Largest sum of sizes and prices.
        groups: Number of items of each group of consecutive items.
        prices: Price of each group, as a size.

    Returns:
        Indices of the items, int64, on the CPU.

    Example:
        >>> values, sizes = torch.tensor([5.0, 1.0, 4.0, 4.0]), [1, 1, 1, 1]
        >>> fill_open_groups(values, sizes, 4, groups=[2, 2], prices=[2, 1]).tolist()
        [2, 3]
    """
    search = _OpenGroups(values, sizes, budget, groups, prices)
    found, best = torch.zeros(0, dtype=torch.int64), 0.0
    for is_open, bound in search.best_sets():
        if bound <= best * (1 + _ROUNDING):
            break
        items = search.fill(is_open)
        value = float(search.values[items].sum())
        if value > best:
            found, best = items, value
    return found


class _OpenGroups:
    """The sets of groups that may be open, and their values."""

    def __init__(
        self, values: Tensor, sizes: Sequence[float], budget: float, groups: Sequence[int], prices: Sequence[float]
    ) -> None:
        self.values = values.detach().double().cpu()
        self._sizes = torch.tensor(sizes, dtype=torch.float64)
        self._budget = budget
        self._prices = torch.tensor(prices, dtype=torch.float64)
        numbers = torch.tensor(list(groups))
        self._group = torch.arange(len(numbers)).repeat_interleave(numbers)
        self._tabulate()

    def _tabulate(self) -> None:
        """Sum the sizes and values of each group down to some densities, ``[num_groups, num_points]``."""
        density = torch.where(self._sizes > 0, self.values / self._sizes.clamp_min(1e-300), -torch.inf)
        order = density.argsort(descending=True, stable=True)[: int((self._sizes > 0).sum())]
        num_points = min(_MAX_POINTS, len(order))
        points = (torch.arange(len(order)) * num_points).div(max(1, len(order)), rounding_mode="floor")
        at, empty = (self._group[order], points + 1), self._prices.new_zeros(len(self._prices), num_points + 1)
        self._size_at = empty.index_put(at, self._sizes[order], accumulate=True).cumsum(dim=1)
        self._value_at = empty.index_put(at, self.values[order], accumulate=True).cumsum(dim=1)

    def bounds(self, is_open: Tensor) -> Tensor:
        """Return the value of the fractional knapsack of sets of groups, ``[num_sets]``.

        Sets whose prices exceed the budget have what is missing as a negative value.

        Args:
            is_open: Mask of each set, ``[num_sets, num_groups]``.
        """
        masks = is_open.double()
        room = self._budget * (1 + _ROUNDING) - masks @ self._prices
        sizes, values = masks @ self._size_at, masks @ self._value_at
        # The last point that there is room for, and the fraction of the step to the next one.
        last = (torch.searchsorted(sizes, room.clamp_min(0).unsqueeze(1), right=True) - 1).clamp_min(0)
        after = (last + 1).clamp(max=sizes.shape[1] - 1)
        step = sizes.gather(1, after) - sizes.gather(1, last)
        share = ((room.unsqueeze(1) - sizes.gather(1, last)) / step.clamp_min(1e-300)).clamp(0, 1)
        value = values.gather(1, last) + share * (values.gather(1, after) - values.gather(1, last))
        return torch.where(room < 0, room, value.squeeze(1))

    def best_sets(self) -> list[tuple[Tensor, float]]:
        """Return some sets of groups with their bounds, the best first."""
        num_groups = len(self._prices)
        if num_groups <= _MAX_ENUMERATED:
            sets = torch.tensor(list(itertools.product((False, True), repeat=num_groups)))
        else:
            starts = self._relaxed(), torch.ones(num_groups, dtype=torch.bool)
            sets = torch.cat([self._exchange(start) for start in starts]).unique(dim=0)
        bounds, order = self.bounds(sets).sort(descending=True, stable=True)
        return [(sets[index], float(bound)) for bound, index in zip(bounds, order, strict=True)][:_MAX_FILLED]

    def fill(self, is_open: Tensor) -> Tensor:
        """Return the best items of a set of groups; the price of a group without an item is left for others."""
        while True:
            inside = is_open[self._group]
            room = self._budget - float(self._prices[is_open].sum())
            items = fill_budget(self.values, (self._sizes * inside).tolist(), room)
            used = torch.zeros_like(is_open).index_fill(0, self._group[items], True)
            if not len(items) or torch.equal(used, is_open):
                return items
            is_open = used

    def _relaxed(self) -> Tensor:
        """Return the set of groups that pay for themselves at the least price of size that meets the budget."""
        worth = self.values / self._sizes.clamp_min(1e-300)
        low, high = 0.0, float(worth[self._sizes > 0].max()) if (self._sizes > 0).any() else 0.0
        is_open = torch.zeros(len(self._prices), dtype=torch.bool)
        for _ in range(40):
            rate = (low + high) / 2
            gains = (self.values - rate * self._sizes).clamp_min(0) * (self._sizes > 0)
            paying = torch.zeros_like(self._prices).index_add(0, self._group, gains) > rate * self._prices
            chosen = (gains > 0) & paying[self._group]
            if float(self._sizes[chosen].sum() + self._prices[paying].sum()) <= self._budget:
                high, is_open = rate, paying
            else:
                low = rate
        return is_open

    def _exchange(self, is_open: Tensor) -> Tensor:
        """Open, close and exchange groups while that is better, and return the sets around the last one."""
        for _ in range(_MAX_ROUNDS):
            sets = torch.cat([is_open.unsqueeze(0), self._around(is_open)])
            bounds = self.bounds(sets)
            best = int(bounds.argmax())
            if bounds[best] <= bounds[0] + _ROUNDING * bounds[0].abs():
                break
            is_open = sets[best]
        return sets

    def _around(self, is_open: Tensor) -> Tensor:
        """Return the sets with one group more, one less, or another one, ``[num_sets, num_groups]``."""
        flips = torch.eye(len(is_open), dtype=torch.bool)
        opened, closed = flips[~is_open], flips[is_open]
        pairs = (opened.unsqueeze(1) | closed.unsqueeze(0)).flatten(0, 1)
        return is_open ^ torch.cat([flips, pairs])
