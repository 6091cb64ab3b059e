"""The choice of gates for a wanted speed-up, from timings on this device."""

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from gating.errors import InputError

__all__ = ["Reached", "check_speedup", "kept_for_speedup"]

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

    Latency is linear in the kept units and open blocks only roughly. So copies with the chosen gates are timed, and the
    budget is moved until the speedup is right; a warning names the one that was reached if it is further away than 5
    percent. A smaller difference than that ends the search if it is no larger than the error of the timing, and so does
    the end of the time.

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
        # A choice that is too far away is moved however uncertain its time is.
        if is_over or tried[-1][0] <= max(_CLOSE, min(error, _FAR)):
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
