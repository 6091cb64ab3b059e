"""What to keep for a wanted speed-up, from timings on this device: a number of heads, or a choice of gates."""

import warnings
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.selection import Items
from gating.pruning.latency.comparison import margin
from gating.pruning.latency.copies import CopyTimer

__all__ = ["Reached", "check_speedup", "kept_for_speedup", "num_heads_for_speedup"]

# Shares of heads that are timed first. Time is nearly linear in the number of heads: two of them are needed.
_SHARES = (0.0, 0.5, 0.25, 0.75)
_NUM_NEEDED = 2
# Number of choices of gates that are timed at most.
_MAX_ATTEMPTS = 8
# Distance from the wanted speedup at which the search for gates ends, and at which it warns.
_CLOSE, _FAR = 0.02, 0.05


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


class Reached(NamedTuple):
    """The speedup of a choice of gates.

    Attributes:
        speedup: The speedup.
        error: Its relative standard error.
        is_over: Whether there is no time for another choice.
    """

    speedup: float
    error: float = 0.0
    is_over: bool = False


def kept_for_speedup(
    choose: Callable[[float], Tensor], measure: Callable[[Tensor], Reached], *, speedup: float, keep: float
) -> Tensor:
    """Return the choice of gates with which the compact model is measured to have a speedup.

    Latency is linear in the kept units only roughly: layers that lose all heads also lose their softmax. So copies with
    the chosen gates are timed, and the budget is moved until the speedup is right; a warning names the one that was
    reached if it is further away than 5 percent. A difference that is smaller than the error of the timing ends the
    search, too, and so does the end of the time.

    Args:
        choose: Function from a share of the cost to the mask of the gates to keep, ``[num_gates]``.
        measure: Function from a mask to the speedup that it reaches.
        speedup: Time of the dense model over that of the compact one.
        keep: The share to begin with.

    Example:
        >>> import torch
        >>> choose = lambda share: torch.arange(48) < share * 48
        >>> speedup_of = lambda kept: Reached(1 / (0.2 + 0.8 * kept.float().mean().item()))
        >>> kept_for_speedup(choose, speedup_of, speedup=2.0, keep=0.6).sum().item()
        18
    """
    # Relative times of the nearest shares that are too fast and too slow.
    fast, slow = (0.0, 0.0), (1.0, 1.0)
    tried: list[tuple[float, float, Tensor]] = []
    share = keep
    for _ in range(_MAX_ATTEMPTS):
        kept = choose(share)
        reached, error, is_over = measure(kept)
        tried.append((abs(reached / speedup - 1), reached, kept))
        if is_over or tried[-1][0] <= max(_CLOSE, error):
            break
        if reached > speedup:
            fast = (share, 1 / reached)
        else:
            slow = (share, 1 / reached)
        share = _between(fast, slow, 1 / speedup)
        if slow[0] - fast[0] < 1e-3:
            break
    distance, reached, kept = min(tried, key=lambda attempt: attempt[0])
    if distance > _FAR:
        warnings.warn(
            f"The compact model is {reached:.2f} times as fast as the dense one here, not {speedup}: of {len(tried)} "
            "choices of these gates that were timed, none was closer.",
            stacklevel=2,
        )
    return kept


def _between(fast: tuple[float, float], slow: tuple[float, float], time: float) -> float:
    """Return the share at which a line through two points has the wanted time, away from both ends."""
    (low, fast_time), (high, slow_time) = fast, slow
    position = (time - fast_time) / (slow_time - fast_time) if slow_time > fast_time else 0.5
    return low + min(0.9, max(0.1, position)) * (high - low)
