"""The choice of gates within a limit: minima of layers first, then down the scores while they fit."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

# Shares of cost are rounded: a limit of all gates must hold all gates.
_ROUNDING = 1e-9


def choose(
    scores: Tensor,
    sizes: Sequence[float],
    limit: float,
    layers: Sequence[int],
    least: Sequence[int],
    units: Sequence[int],
    is_met: bool,
) -> list[int]:
    """Return the positions of the items with the largest scores: minima of layers first, then while there is room.

    Scores, ``[num_items]``, are per unit of size; items of size zero are not chosen. Each layer keeps its ``least``
    number of units. The sum of sizes stays within the limit, or is the limit if ``is_met``, a number that some choice
    has.
    """
    order = [item for item in scores.detach().argsort(descending=True, stable=True).tolist() if sizes[item]]
    # Items of one size meet each number that they can.
    checks = is_met and len({sizes[item] for item in order}) > 1
    left, missing, taken, used = Counter((layers[i], sizes[i]) for i in order), list(least), list[int](), 0.0
    for is_minimum in (True, False) if any(least) else (False,):
        later = []
        for place, item in enumerate(order):
            size, layer, needed = sizes[item], layers[item], 0.0
            if is_minimum and missing[layer] <= 0:
                later.append(item)
                continue
            left[layer, size] -= 1
            if is_minimum and not is_met:
                # What the other minima take in any case is kept free for them.
                others = [(layers[other], sizes[other], units[other]) for other in order[place + 1 :]]
                needed = least_size(others, [need - units[item] * (n == layer) for n, need in enumerate(missing)])
            fits = used + size + needed <= limit * (1 + _ROUNDING)
            if fits and checks:
                after = [need - units[item] * (place == layer) for place, need in enumerate(missing)]
                fits = bool(sums_of_layers(left, after) >> int(limit - used - size) & 1)
            if fits:
                taken.append(item)
                used += size
                missing[layer] -= units[item]
        order = later
    return taken


def least_size(items: Iterable[tuple[int, float, int]], least: Sequence[int]) -> float:
    """Return the least size of (layer, size, units) items that give each layer its minimum; infinite without one."""
    best = [[0.0] + [math.inf] * max(0, need) for need in least]
    for layer, size, units in items:
        of_layer = best[layer]
        for number in range(len(of_layer) - 1, 0, -1):
            of_layer[number] = min(of_layer[number], of_layer[max(0, number - units)] + size)
    return sum(of_layer[-1] for of_layer in best)


def sums_of_layers(counts: Mapping[tuple[int, float], int], least: Sequence[int]) -> int:
    """Return an integer whose bit ``n`` is set if some items together have the size ``n``, and the minima of layers.

    ``counts`` is the number of items of each layer and size.
    """
    free, own = Counter[int](), dict[int, Counter[int]]()
    for (layer, size), number in counts.items():
        (own.setdefault(layer, Counter()) if least[layer] > 0 else free)[int(size)] += number
    sums = _sums(free)
    for layer, minimum in enumerate(least):
        if minimum > 0:
            left, combined = _sums(own.get(layer, {})) >> minimum << minimum, 0
            while left:
                combined |= sums << (left & -left).bit_length() - 1
                left &= left - 1
            sums = combined
    return sums


def _sums(counts: Mapping[int, int]) -> int:
    """Return an integer whose bit ``n`` is set if some items sum to ``n``, from the number of items of each size."""
    sums = 1
    for size, left in counts.items():
        # Powers of two and a rest make every number of items of one size.
        power = 1
        while size and left:
            number = min(power, left)
            sums |= sums << number * size
            left, power = left - number, 2 * power
    return sums
