"""Number of heads to keep for a wanted speed-up, from timings on this device."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate, pairwise, zip_longest

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates, create_gates
from gating.objectives.selection import Items
from gating.pruning.latency.comparison import margin
from gating.pruning.latency.copies import CopyTimer
from gating.pruning.prune import remove_in_copy

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

    Args:
        speedup: Time of the dense model over that of the compact one; None is always valid.
        num_heads: Number of heads to keep, if given.
        num_neurons: Number of neurons to keep, if given.
        keep: Share of heads or of cost to keep, if given.

    Raises:
        ValueError: The speed-up is not above 1, or another budget is given as well.

    Example:
        >>> check_speedup(speedup=1.3)
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


def num_heads_for_speedup(
    model: nn.Module,
    *,
    speedup: float,
    gates: HeadGates | None = None,
    timer: CopyTimer | None = None,
    measure: Callable[[int], float] | None = None,
) -> int:
    """Return the largest number of heads with which a forward pass reaches a speed-up.

    Copies of the model with heads removed evenly over the layers are timed against the dense model. When the time is
    over, the number is interpolated between those that were timed. A search that empties whole layers gives a faster
    model with the same number of heads.

    Args:
        model: The dense model; unchanged.
        speedup: Time of the dense model over that of the compact one, above 1.
        gates: Gates that the heads will get; by default gates on every head. Heads without a gate stay.
        timer: Timer of its compact copies.
        measure: Function from a number of heads to the speed-up, in place of the timer.

    Returns:
        A number of heads that these gates can keep.

    Raises:
        ValueError: The speed-up is not above 1, or a single head (or group of heads) is still slower.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> num_heads_for_speedup(model, speedup=1.25, measure=lambda num_heads: 2 / (1 + num_heads / 8))
        4
    """
    check_speedup(speedup=speedup)
    gated = create_gates(model) if gates is None else gates
    if measure is None:
        assert timer is not None
        measure = partial(_time, model, gated, timer)
    items = Items(gated.units_per_gate)
    is_over = (lambda: False) if timer is None else (lambda: timer.is_over)
    points = _first_points(items, measure, is_over)
    total, least, unit = max(points), min(points), gated.units[0]
    if points[least] < speedup:
        precision = "" if timer is None else f" (timed {margin(timer.error)})"
        raise InputError(
            f"speedup={speedup} cannot be reached by removing {unit}: with {least} of {total} {unit} left the model is "
            f"{points[least]:.2f} times as fast here{precision}. Ask for less than that."
        )
    return _refine(points, items, measure, is_over, speedup=speedup)


def _first_points(items: Items, measure: Callable[[int], float], is_over: Callable[[], bool]) -> dict[int, float]:
    """Return the speed-ups of a few numbers of heads, from all to the fewest possible."""
    total, least = sum(items.units), items.nearest(1)
    points = {total: 1.0}
    for number, share in enumerate(_SHARES):
        num_heads = items.nearest(max(least, round(share * total)))
        if num_heads not in points and (number < _NUM_NEEDED or not is_over()):
            points[num_heads] = measure(num_heads)
    return points


def _refine(
    points: dict[int, float],
    items: Items,
    measure: Callable[[int], float],
    is_over: Callable[[], bool],
    *,
    speedup: float,
) -> int:
    """Lower an interpolated number of heads until it reaches the speed-up, or the time is over."""
    total, least = max(points), min(points)
    guess = _interpolate(points, speedup)
    while guess > least:
        guess = _at_most(guess, items)
        if guess not in points and is_over():
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


def _at_most(num_heads: int, items: Items) -> int:
    """Return the largest number of heads up to ``num_heads`` that gates can keep."""
    while items.nearest(num_heads) > num_heads:
        num_heads -= 1
    return items.nearest(num_heads)


def _time(model: nn.Module, gates: HeadGates, timer: CopyTimer, number: int) -> float:
    with torch.no_grad():
        compact = remove_in_copy(model, gates, _keep_evenly(gates, number))
    # Those that are needed leave a part of the time to the others together.
    share = 1 / max(_NUM_NEEDED + 0.5 - len(timer.timed), 1)
    what = f"{number} of {sum(gates.units_per_gate)} {gates.units[0]}"
    return timer.time(compact, what=what, share=share).speedup


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
