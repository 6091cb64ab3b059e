"""Number of heads to keep for a wanted speed-up, from timings on this device."""

from collections.abc import Mapping
from itertools import accumulate, pairwise, zip_longest

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.selection import Items
from gating.pruning.latency.comparison import margin
from gating.pruning.latency.copies import CopyTimer

__all__ = ["check_speedup", "num_heads_for_speedup"]

# Shares of heads that are timed first. Time is nearly linear in the number of heads: two of them are needed.
_SHARES = (0.0, 0.5, 0.25, 0.75)
_NUM_NEEDED = 2


def check_speedup(
    *,
    speedup: float | None,
    num_heads: int | Mapping[str, int] | None = None,
    num_neurons: int | None = None,
    keep: float | Mapping[str, float] | None = None,
) -> None:
    """Check that a speed-up is above 1 and that no number or share of units is given with it.

    Raises:
        ValueError: The speed-up is not above 1, or another budget is given as well.
    """
    if speedup is None:
        return
    if num_heads is not None or keep is not None:
        raise InputError(
            f"Give either speedup, num_heads or keep: got speedup={speedup}, num_heads={num_heads} and keep={keep}."
        )
    if num_neurons is not None:
        raise InputError(f"Give either speedup or num_neurons: got speedup={speedup} and num_neurons={num_neurons}.")
    if not speedup > 1:
        raise InputError(f"speedup={speedup} is not above 1: give a number such as 1.3, or leave it out.")


def num_heads_for_speedup(gates: HeadGates, timer: CopyTimer, *, speedup: float) -> int:
    """Return the largest number of heads, which these gates can keep, with which a forward pass reaches a speed-up.

    Copies of the model with heads removed evenly over the layers are timed against the dense model. When the time is
    over, the number is interpolated between those that were timed. A search that empties whole layers gives a faster
    model with the same number of heads.

    Args:
        gates: Gates that the heads of the model will get. Heads without a gate stay.
        timer: Timer of compact copies of the model.
        speedup: Time of the dense model over that of the compact one, above 1.

    Raises:
        ValueError: The speed-up is not above 1, or a single head (or group of heads) is still slower.
    """
    check_speedup(speedup=speedup)
    items, unit = Items(gates.units_per_gate), gates.units[0]
    total, least = sum(items.units), items.nearest(1)

    def measure(number: int) -> float:
        # Those that are needed leave a part of the time to the others together.
        share = 1 / max(_NUM_NEEDED + 0.5 - len(timer.timed), 1)
        what = f"{number} of {total} {unit}"
        return timer.time_kept(gates, _keep_evenly(gates, number), what=what, share=share).speedup

    points = {total: 1.0}
    for position, share in enumerate(_SHARES):
        number = items.nearest(max(least, round(share * total)))
        if number not in points and (position < _NUM_NEEDED or not timer.is_over):
            points[number] = measure(number)
    if points[least] < speedup:
        raise InputError(
            f"speedup={speedup} cannot be reached by removing {unit}: with {least} of {total} {unit} left the model is "
            f"{points[least]:.2f} times as fast here (timed {margin(timer.error)}). Ask for less than that."
        )
    guess = _interpolate(points, speedup)
    while guess > least:
        # This is the largest number up to the guess that gates can keep.
        guess = items.neighbors(guess + 1)[0]
        if guess not in points and timer.is_over:
            break
        reached = points.get(guess) or measure(guess)
        if reached >= speedup:
            break
        points[guess] = reached
        guess -= max(1, total // 50)
    return max(least, guess)


def _interpolate(points: Mapping[int, float], speedup: float) -> int:
    """Return the number of heads for a speed-up, with times interpolated linearly between measured points."""
    ordered = sorted(points.items())
    for (fewer, fast), (more, slow) in reversed(list(pairwise(ordered))):
        if fast >= speedup > slow:
            share = (1 / speedup - 1 / fast) / (1 / slow - 1 / fast)
            return int(fewer + share * (more - fewer) + 1e-6)
    return ordered[0][0]


def _keep_evenly(gates: HeadGates, number: int) -> Tensor:
    """Return the mask of gates that stand for a number of units: one gate of each block in turn."""
    starts = accumulate(gates.block_sizes, initial=0)
    blocks = [range(start, start + size) for start, size in zip(starts, gates.block_sizes, strict=False)]
    kept = torch.zeros(len(gates.units_per_gate), dtype=torch.bool)
    for gate in (gate for turn in zip_longest(*blocks) for gate in turn if gate is not None):
        if 0 < gates.units_per_gate[gate] <= number:
            kept[gate] = True
            number -= gates.units_per_gate[gate]
    return kept
