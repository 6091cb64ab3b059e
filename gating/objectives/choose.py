"""The choice of gates within a limit: minima of layers first, then down the scores while they fit."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

__all__ = ["choose", "sums_of_layers"]

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

    Args:
        scores: Score of one unit of size of each item, ``[num_items]``.
        sizes: Size of each item; items of size zero are not chosen.
        limit: Largest sum of sizes.
        layers: Number of each item's layer.
        least: Least number of units of each layer.
        units: Number of units of each item.
        is_met: Whether the sum of sizes is the limit, a number that some choice has.
    """
    order = [item for item in scores.detach().argsort(descending=True, stable=True).tolist() if sizes[item]]
    # Items of one size meet each number that they can.
    checks = is_met and len({sizes[item] for item in order}) > 1
    left, missing, taken, used = Counter((layers[i], sizes[i]) for i in order), list(least), list[int](), 0.0
    for is_minimum in (True, False) if any(least) else (False,):
        later = []
        for item in order:
            size, layer = sizes[item], layers[item]
            if is_minimum and missing[layer] <= 0:
                later.append(item)
                continue
            left[layer, size] -= 1
            fits = used + size <= limit * (1 + _ROUNDING)
            if fits and checks:
                after = [need - units[item] * (place == layer) for place, need in enumerate(missing)]
                fits = bool(sums_of_layers(left, after) >> int(limit - used - size) & 1)
            if fits:
                taken.append(item)
                used += size
                missing[layer] -= units[item]
        order = later
    return taken


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
            of_layer = _sums(own.get(layer, {})) >> minimum << minimum
            combined = 0
            for bit in _set_bits(of_layer):
                combined |= sums << bit
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


def _set_bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
