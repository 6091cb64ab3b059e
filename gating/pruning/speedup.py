"""How many heads to keep so that the compact model is so many times as fast as the dense one, on this device."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

from gating.discovery.find import find_attention_blocks
from gating.errors import InputError
from gating.gates import HeadGates, inject_gates
from gating.objectives.selection import nearest_reachable
from gating.pruning.measure import compare_latency
from gating.pruning.prune import prune_heads

__all__ = ["check_speedup", "num_heads_for_speedup"]

# Where the curve is looked at first, as shares of the heads. Time is nearly a straight line in their number.
_SHARES = (0.0, 0.25, 0.5, 0.75)


def check_speedup(
    *,
    speedup: float | None,
    num_heads: int | Mapping[str, int] | None = None,
    keep: float | Mapping[str, float] | None = None,
) -> None:
    """Make sure that a speed-up is one, and the only thing that is asked for.

    Raises:
        ValueError: It is not above 1, or a number or share of heads is given, too.
    """
    if speedup is None:
        return
    if num_heads is not None or keep is not None:
        raise InputError(
            f"Give either speedup, num_heads or keep: got speedup={speedup}, num_heads={num_heads} and keep={keep}."
        )
    if not speedup > 1:
        raise InputError(f"speedup={speedup} is none: give a number above 1, such as 1.3, or leave it out.")


def num_heads_for_speedup(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    speedup: float,
    repeats: int = 15,
    gates: HeadGates | None = None,
    measure: Callable[[int], float] | None = None,
) -> int:
    """Find the largest number of heads with which a forward pass is so many times as fast.

    Copies of the model lose heads evenly over their layers and are timed beside the whole model on the device that the
    batch is on. Which heads a search keeps is not known beforehand; layers that it empties make the model faster still.

    Args:
        model: The dense model; unchanged.
        batch: Keyword arguments of the model, of the size that matters.
        speedup: Time of the dense model over that of the compact one, above 1.
        repeats: How often each pair of models is timed.
        gates: Those that the heads are to get, or have had; on every head when left out. Other heads stay.
        measure: What gives the speed-up of a number of heads instead of timing.

    Returns:
        A number of heads that gates on this model can keep.

    Raises:
        ValueError: The speed-up is not above 1, or not even one head (one group of heads) a model reaches it.
    """
    check_speedup(speedup=speedup)
    gated = _gates_on_all_heads(model) if gates is None else gates
    heads_per_gate = gated.heads_per_gate
    total, least = sum(heads_per_gate), nearest_reachable(1, heads_per_gate)
    timed = measure or (lambda num_heads: _time(model, batch, num_heads, gated, repeats))
    points = {total: 1.0}
    for share in _SHARES:
        num_heads = nearest_reachable(max(least, round(share * total)), heads_per_gate)
        points[num_heads] = timed(num_heads)
    if points[least] < speedup:
        raise InputError(
            f"speedup={speedup} cannot be reached by removing heads: with {least} of {total} heads left the model is "
            f"{points[least]:.2f} times as fast here. Ask for less than that."
        )
    guess = _interpolate(points, speedup)
    while guess > least:
        guess = _at_most(guess, heads_per_gate)
        reached = points.get(guess) or timed(guess)
        if reached >= speedup:
            break
        points[guess] = reached
        guess -= max(1, total // 50)
    return max(least, guess)


def _interpolate(points: Mapping[int, float], speedup: float) -> int:
    """Read off a curve through measured points how many heads give a speed-up; times change linearly between them."""
    ordered = sorted(points.items())
    for (fewer, fast), (more, slow) in reversed(list(pairwise(ordered))):
        if fast >= speedup > slow:
            share = (1 / speedup - 1 / fast) / (1 / slow - 1 / fast)
            return int(fewer + share * (more - fewer) + 1e-6)
    return ordered[0][0]


def _at_most(num_heads: int, heads_per_gate: tuple[int, ...]) -> int:
    while nearest_reachable(num_heads, heads_per_gate) > num_heads:
        num_heads -= 1
    return nearest_reachable(num_heads, heads_per_gate)


def _gates_on_all_heads(model: nn.Module) -> HeadGates:
    gates = inject_gates(model)
    gates.remove()
    return gates


def _time(model: nn.Module, batch: Mapping[str, Tensor], num_heads: int, gates: HeadGates, repeats: int) -> float:
    compact = deepcopy(model)
    _keep_evenly(compact, num_heads, max(gates.heads_per_gate), gates.block_names)
    return compare_latency(model, compact, batch, repeats=repeats).speedup


def _keep_evenly(model: nn.Module, num_heads: int, group: int, names: Sequence[str]) -> None:
    """Keep groups of heads of each block with gates in turn until there are so many, in place."""
    blocks = [block for block in find_attention_blocks(model) if block.name in names]
    kept: dict[str, set[int]] = {block.name: set() for block in blocks}
    left = num_heads
    for first in range(0, max(block.num_heads for block in blocks), group):
        for block in blocks:
            heads = block.head_ids[first : first + group]
            if heads and len(heads) <= left:
                kept[block.name].update(heads)
                left -= len(heads)
    with torch.no_grad():
        prune_heads(model, {block.name: set(block.head_ids) - kept[block.name] for block in blocks})
