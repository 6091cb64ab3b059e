"""Selection of items by scores: an exact number of units, or as many as a budget affords.

An item is a gate, or one gate of each block. It has a size: units or cost. Items come in groups, such as the gates of a
block, and each group may have a minimum of units.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from gating.errors import RemedyError
from gating.objectives.knapsack import fill_budget, select_exactly, values_of
from gating.units import UNITS, UnitName

__all__ = ["check_reachable", "fewest_units", "nearest_reachable", "select_affordable", "select_best", "select_gates"]


def check_reachable(
    number: int,
    sizes: tuple[int, ...],
    *,
    block_sizes: Sequence[int] = (),
    min_per_layer: int | Sequence[int] = 0,
    kind: str | None = None,
    unit: UnitName = "heads",
    uniform: bool = False,
) -> None:
    """Raise ``RemedyError`` unless some selection of gates has exactly ``number`` units.

    Args:
        number: Number of units to keep.
        sizes: Number of units of each gate.
        block_sizes: Number of gates of each block; needed with ``min_per_layer``.
        min_per_layer: Least number of units that every block keeps, or a number for each block.
        kind: Kind of blocks that the gates belong to, for the message.
        unit: Name of the unit, for the message.
        uniform: Whether the sizes are those of one gate of every block, for the message.

    Example:
        >>> check_reachable(3, (2, 2))  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        gating.errors.RemedyError: num_heads=3 cannot be kept exactly
    """
    reachable = _reachable(sizes, tuple(block_sizes), _of_each(min_per_layer, block_sizes))
    if not 1 <= number <= sum(sizes) or reachable >> number & 1:
        return
    name = f"num_{unit}.{kind}" if kind else f"num_{unit}"
    neighbors = _neighbors(number, reachable)
    near = f"number{'s are' if len(neighbors) > 1 else ' is'} {' or '.join(map(str, neighbors))}"
    if uniform:
        reason = "uniform=true keeps equally many in every layer"
        remedy, python, command = "let layers differ with ", "uniform=False.", "objective.uniform=false."
    else:
        reason, remedy, python, command = UNITS[unit].why_inexact
        reason = reason.format(max(sizes))
    problem = f"{name}={number} cannot be kept exactly: {reason}. The nearest possible {near}; or {remedy}"
    raise RemedyError(problem, python=python, command=command)


def nearest_reachable(
    number: int,
    sizes: tuple[int, ...],
    *,
    block_sizes: Sequence[int] = (),
    min_per_layer: int | Sequence[int] = 0,
) -> int:
    """Return the number of units nearest to ``number``, but not 0, that some selection of gates has.

    Example:
        >>> nearest_reachable(5, (2, 2, 2, 2))
        4
    """
    reachable = _reachable(sizes, tuple(block_sizes), _of_each(min_per_layer, block_sizes))
    if number and reachable >> number & 1:
        return number
    return min(_neighbors(number, reachable), key=lambda near: (abs(near - number), near))


def fewest_units(sizes: tuple[int, ...], *, block_sizes: Sequence[int], min_per_layer: int | Sequence[int]) -> int:
    """Return the smallest number of units with ``min_per_layer`` in every block, which must have as many.

    Example:
        >>> fewest_units((2, 2, 2, 2), block_sizes=(2, 2), min_per_layer=1)
        4
    """
    reachable = _reachable(sizes, tuple(block_sizes), _of_each(min_per_layer, block_sizes))
    return (reachable & -reachable).bit_length() - 1


def select_gates(
    scores: Tensor,
    sizes: tuple[int, ...],
    number: int,
    *,
    block_sizes: Sequence[int] = (),
    min_per_layer: int | Sequence[int] = 0,
) -> Tensor:
    """Select the gates with the largest scores that stand for exactly ``number`` units.

    If gates have different sizes, the selection maximizes the sum of score times size.

    Args:
        scores: Score of one unit of each gate, ``[num_gates]``.
        sizes: Number of units of each gate.
        number: A number that :func:`check_reachable` accepts.
        block_sizes: Number of gates of each block; needed with ``min_per_layer``.
        min_per_layer: Least number of units that every block keeps, or a number for each: the best ones come first.

    Returns:
        Indices of the selected gates.

    Example:
        >>> select_gates(torch.tensor([0.3, 0.9, 0.8, 0.1]), (1, 1, 1, 1), 2).tolist()
        [1, 2]
        >>> select_gates(torch.tensor([0.3, 0.9, 0.8, 0.1]), (2, 1, 1, 2), 3).tolist()
        [0, 1]
    """
    least = _of_each(min_per_layer, block_sizes)
    different = set(sizes) - {0}
    if len(different) == 1:
        size = different.pop()
        candidates = scores
        if 0 in sizes:
            candidates = scores.masked_fill(torch.tensor(sizes, device=scores.device) == 0, -torch.inf)
        if any(least):
            candidates = _favor_best_of_each(candidates, block_sizes, [-(-number // size) for number in least])
        return candidates.topk(number // size).indices
    values = scores.double().cpu() * torch.tensor(sizes)
    return select_exactly(values, sizes, number, groups=block_sizes, least=least).to(scores.device)


def select_affordable(scores: Tensor, costs: Sequence[float], budget: float, *, first: Sequence[int] = ()) -> Tensor:
    """Select the gates with the largest scores whose costs sum to at most the budget.

    The selection maximizes the sum of :func:`~gating.objectives.knapsack.values_of`, and leaves no room for another
    gate.

    Args:
        scores: Score per unit of cost of each gate, ``[num_gates]``.
        costs: Cost of each gate.
        budget: Largest sum of costs.
        first: Indices of gates that are selected in any case.

    Returns:
        Indices of the selected gates.

    Example:
        >>> select_affordable(torch.tensor([0.3, 0.9, 0.8, 0.1]), (2.0, 1.0, 1.0, 2.0), 3.0).tolist()
        [1, 2]
        >>> select_affordable(torch.tensor([0.3, 0.9, 0.8, 0.1]), (2.0, 1.0, 1.0, 2.0), 3.0, first=[3]).tolist()
        [3, 1]
    """
    values = values_of(scores, torch.tensor(costs))
    taken = set(first)
    open_costs = [0.0 if index in taken else cost for index, cost in enumerate(costs)]
    others = fill_budget(values, open_costs, budget - sum(costs[index] for index in first))
    return torch.cat([torch.tensor(list(first), dtype=torch.int64), others]).to(scores.device)


def select_best(scores: Tensor, units: Sequence[int], groups: Sequence[int], least: Sequence[int]) -> list[int]:
    """Select the best items of each group until it has its minimum of units.

    Args:
        scores: Score of each item, ``[num_items]``.
        units: Number of units of each item.
        groups: Number of items of each group of consecutive items.
        least: Least number of units of each group.

    Example:
        >>> select_best(torch.tensor([1.0, 3.0, 2.0, 0.0]), (1, 1, 0, 2), (2, 2), (1, 1))
        [1, 3]
    """
    order = scores.argsort(descending=True, stable=True).tolist()
    selected = []
    for (first, last), minimum in zip(pairwise(accumulate(groups, initial=0)), least, strict=True):
        missing = minimum
        for index in (index for index in order if first <= index < last and units[index]):
            if missing <= 0:
                break
            selected.append(index)
            missing -= units[index]
    return selected


def _of_each(least: int | Sequence[int], groups: Sequence[int]) -> tuple[int, ...]:
    """Return the minimum of each group; none without groups, or if all are zero."""
    of_each = (least,) * len(groups) if isinstance(least, int) else tuple(least)
    return of_each if any(of_each) else ()


def _favor_best_of_each(scores: Tensor, groups: Sequence[int], num_items: Sequence[int]) -> Tensor:
    """Return the scores with infinity for the best items of each group."""
    favored = scores.clone()
    for group, number in zip(favored.split(list(groups)), num_items, strict=True):
        group.index_fill_(0, group.topk(number).indices, torch.inf)
    return favored


@lru_cache(maxsize=32)
def _reachable(sizes: tuple[int, ...], groups: tuple[int, ...], least: tuple[int, ...]) -> int:
    """Return an integer whose bit ``n`` is set if some items together have the size ``n``."""
    if not least:
        return _sums(sizes)
    total = 1
    for (first, last), minimum in zip(pairwise(accumulate(groups, initial=0)), least, strict=True):
        sums = _sums(sizes[first:last]) >> minimum << minimum
        combined = 0
        for size in _set_bits(sums):
            combined |= total << size
        total = combined
    return total


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


def _neighbors(number: int, reachable: int) -> list[int]:
    """Return the nearest reachable numbers below and above a number, without 0."""
    below = (reachable & ((1 << number) - 1)).bit_length() - 1
    higher = reachable >> (number + 1)
    above = number + (higher & -higher).bit_length()
    return [near for near in (below if below > 0 else None, above if higher else None) if near is not None]
