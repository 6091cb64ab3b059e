"""Knapsacks over items of a few different sizes: the exact choice of gates for a budget.

Items of one size differ in their values alone. So the best choice takes the best items of each size, and one count for
each size gives it: the counts are enumerated over prefix sums of the sorted values, without a search over items.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["fill_budget", "select_exactly", "values_of"]

# Largest number of combinations of counts that are enumerated; dynamic programming takes over beyond it.
_MAX_COMBINATIONS = 2**20
# Cells of the table of dynamic programming if sizes have no larger common measure.
_NUM_CELLS = 2**16
# Shares and sums of sizes are rounded: a budget of all items must hold all items.
_ROUNDING = 1e-12

# Sizes and values of the alternatives at one stage of dynamic programming.
_Options = tuple[list[int], list[float]]


def values_of(scores: Tensor, sizes: Tensor) -> Tensor:
    """Return the value of each item for :func:`fill_budget` from scores per unit of size.

    The value is ``size * (score - lowest score + 0.01 * range of scores)``. With values above zero no room is left for
    another item. The shift does not change the order of items, and is small so that a better item is rarely given up
    for a fuller budget.

    Args:
        scores: Score of one unit of size of each item, ``[num_items]``; any finite numbers.
        sizes: Size of each item, ``[num_items]``.

    Returns:
        Shape ``[num_items]``, float64, on the CPU.

    Example:
        >>> values_of(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 1.0])).tolist()
        [0.1, 1.01]
    """
    scores = scores.double().cpu()
    lowest, highest = scores.aminmax()
    span = highest - lowest if highest > lowest else torch.ones_like(lowest)
    return sizes.double().cpu() * (scores - lowest + 0.01 * span)


def fill_budget(values: Tensor, sizes: Sequence[float], budget: float) -> Tensor:
    """Select the items with the largest sum of values whose sizes sum to at most the budget.

    Exact if at most about a million combinations of counts of all sizes but the most frequent one exist (two sizes:
    always), or if the sizes have a common measure that the budget holds at most 65536 times. Otherwise the sizes of
    each class are rounded up, by less than 1/65536 of the budget in all, so that the budget is not exceeded; the room
    that is left over is filled.

    Args:
        values: Value of each item, ``[num_items]``, above zero, such as those of :func:`values_of`.
        sizes: Size of each item; items of size zero are not selected.
        budget: Largest sum of sizes.

    Returns:
        Indices of the items, int64, on the CPU.

    Example:
        >>> fill_budget(torch.tensor([6.0, 5.0, 4.0, 1.0]), [3, 2, 2, 1], 5).tolist()
        [0, 1]
    """
    classes = _classes(values, sizes)
    capacity = budget * (1 + _ROUNDING)
    if not classes:
        return torch.zeros(0, dtype=torch.int64)
    if _num_combinations(classes) <= _MAX_COMBINATIONS:
        counts = _enumerate(classes, capacity, exact=False)
    else:
        counts = _fill_room(classes, _on_a_grid(classes, capacity), capacity)
    return _items(classes, counts)


def select_exactly(
    values: Tensor, sizes: Sequence[int], total: int, *, groups: Sequence[int] = (), least: Sequence[int] = ()
) -> Tensor:
    """Select the items with the largest sum of values whose sizes sum to exactly the total.

    Args:
        values: Value of each item, ``[num_items]``; any finite numbers.
        sizes: Size of each item, whole numbers; items of size zero are not selected.
        total: A sum of sizes that some selection has.
        groups: Number of items of each group of consecutive items; needed with ``least``.
        least: Least sum of sizes in each group; no minimum if left out.

    Returns:
        Indices of the items, int64, on the CPU.

    Example:
        >>> select_exactly(torch.tensor([3.0, 2.0, 1.0]), [2, 1, 1], 3).tolist()
        [0, 1]
        >>> select_exactly(torch.tensor([3.0, 2.0, 1.0]), [1, 1, 1], 2, groups=[2, 1], least=[1, 1]).tolist()
        [0, 2]
    """
    if least:
        return _select_by_group(values, sizes, total, groups, least)
    classes = _classes(values, sizes)
    if _num_combinations(classes) <= _MAX_COMBINATIONS:
        return _items(classes, _enumerate(classes, total, exact=True))
    unit = math.gcd(*(int(each.size) for each in classes))
    options = [each.options(unit) for each in classes]
    _, choices = _tables(options, total // unit, exact=True)
    return _items(classes, _trace(options, choices, total // unit))


@dataclass(frozen=True)
class _SizeClass:
    """Items of one size: their indices, the best first, and the sum of values of each number of best ones."""

    size: float
    items: Tensor
    sums: Tensor

    def options(self, unit: float) -> _Options:
        """Return the size, in units and rounded up, and the value of each number of best items."""
        counts = range(len(self.sums))
        return [math.ceil(count * self.size / unit * (1 - _ROUNDING)) for count in counts], self.sums.tolist()


def _classes(values: Tensor, sizes: Sequence[float]) -> list[_SizeClass]:
    """Return the items by size, the most frequent size last."""
    indices: dict[float, list[int]] = {}
    for index, size in enumerate(sizes):
        if size:
            indices.setdefault(size, []).append(index)
    values = values.double().cpu()
    classes = []
    for size, of_size in sorted(indices.items(), key=lambda pair: (len(pair[1]), pair[0])):
        items = torch.tensor(of_size)
        ordered, order = values[items].sort(descending=True, stable=True)
        classes.append(_SizeClass(size, items[order], torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])))
    return classes


def _num_combinations(classes: Sequence[_SizeClass]) -> int:
    return math.prod(len(each.sums) for each in classes[:-1])


def _items(classes: Sequence[_SizeClass], counts: Sequence[int]) -> Tensor:
    chosen = [each.items[:count] for each, count in zip(classes, counts, strict=True)]
    return torch.cat(chosen).sort().values


def _enumerate(classes: Sequence[_SizeClass], capacity: float, *, exact: bool) -> list[int]:
    """Return the best counts: of each combination of the rarer sizes, with as many of the last one as there is room."""
    *rarer, last = classes
    size = value = torch.zeros(1, dtype=torch.float64)
    for each in rarer:
        size = (size.unsqueeze(1) + torch.arange(len(each.sums)) * each.size).flatten()
        value = (value.unsqueeze(1) + each.sums).flatten()
    room = capacity - size
    counts = (room / last.size).floor().clamp(-1, len(last.sums) - 1)
    possible = counts >= 0
    if exact:
        possible &= counts * last.size == room
    value = (value + last.sums[counts.clamp_min(0).long()]).masked_fill(~possible, -torch.inf)
    best = value.argmax()
    shape = [*(len(each.sums) for each in rarer), 1]
    return [*map(int, torch.unravel_index(best, shape)[:-1]), int(counts[best])]


def _on_a_grid(classes: Sequence[_SizeClass], capacity: float) -> list[int]:
    """Return the best counts by dynamic programming over sizes that are rounded up to whole cells."""
    *rarer, last = classes
    unit = capacity / _NUM_CELLS
    if all(float(each.size).is_integer() for each in classes):
        unit = max(unit, math.gcd(*(int(each.size) for each in classes)))
    num_cells = int(capacity / unit)
    options = [each.options(unit) for each in rarer]
    best, choices = _tables(options, num_cells, exact=False)
    # The most frequent size takes the room that each table entry leaves, without a stage of its own.
    room = capacity - torch.arange(num_cells + 1, dtype=torch.float64) * unit
    counts = (room / last.size).floor().clamp(0, len(last.sums) - 1).long()
    cell = int((best + last.sums[counts]).argmax())
    return [*_trace(options, choices, cell), int(counts[cell])]


def _fill_room(classes: Sequence[_SizeClass], counts: list[int], capacity: float) -> list[int]:
    """Return the counts with the next best items that there is still room for."""
    counts = list(counts)
    room = capacity - sum(count * each.size for each, count in zip(classes, counts, strict=True))
    while True:
        fitting = [
            (float(each.sums[count + 1] - each.sums[count]), index)
            for index, (each, count) in enumerate(zip(classes, counts, strict=True))
            if count + 1 < len(each.sums) and each.size <= room
        ]
        if not fitting:
            return counts
        _, index = max(fitting)
        counts[index] += 1
        room -= classes[index].size


def _tables(options: Sequence[_Options], total: int, *, exact: bool) -> tuple[Tensor, list[Tensor]]:
    """Return the largest value for each total up to ``total``, and the option that each stage has in it."""
    best = torch.full((total + 1,), -torch.inf if exact else 0.0, dtype=torch.float64)
    best[0] = 0.0
    choices = []
    for sizes, values in options:
        found, chosen = torch.full_like(best, -torch.inf), torch.zeros(total + 1, dtype=torch.int64)
        for option, (size, value) in enumerate(zip(sizes, values, strict=True)):
            if size <= total:
                rival = best[: total + 1 - size] + value
                is_better = rival > found[size:]
                found[size:] = torch.where(is_better, rival, found[size:])
                chosen[size:].masked_fill_(is_better, option)
        best = found
        choices.append(chosen)
    return best, choices


def _trace(options: Sequence[_Options], choices: Sequence[Tensor], total: int) -> list[int]:
    """Return the option of each stage in the best selection with the total."""
    traced = []
    for (sizes, _), chosen in zip(reversed(options), reversed(choices), strict=True):
        traced.append(int(chosen[total]))
        total -= sizes[traced[-1]]
    return traced[::-1]


def _select_by_group(
    values: Tensor, sizes: Sequence[int], total: int, groups: Sequence[int], least: Sequence[int]
) -> Tensor:
    """Select exactly: the best selection within each group for every total, then the best totals."""
    within: list[list[Tensor]] = []
    outer: list[_Options] = []
    bounds = itertools.pairwise(itertools.accumulate(groups, initial=0))
    for (first, last), minimum in zip(bounds, least, strict=True):
        classes = _classes(values[first:last], sizes[first:last])
        inner = [each.options(1) for each in classes]
        limit = sum(sizes[first:last])
        best, choices = _tables(inner, limit, exact=True)
        totals = [each for each in range(minimum, limit + 1) if best[each] > -torch.inf]
        within.append([_items(classes, _trace(inner, choices, each)) + first for each in totals])
        outer.append((totals, best[totals].tolist()))
    _, choices = _tables(outer, total, exact=True)
    picked = _trace(outer, choices, total)
    return torch.cat([items[index] for items, index in zip(within, picked, strict=True)])
