"""Choosing which gates stay open when a gate may stand for several heads."""

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["check_reachable", "nearest_reachable", "select_gates"]


def check_reachable(num_heads: int, heads_per_gate: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless some choice of gates has exactly so many heads.

    Args:
        num_heads: How many heads are wanted.
        heads_per_gate: How many heads each gate stands for.
    """
    if 1 <= num_heads <= sum(heads_per_gate) and not _reachable(heads_per_gate) >> num_heads & 1:
        near = " or ".join(map(str, _neighbours(num_heads, heads_per_gate)))
        raise ValueError(
            f"num_heads={num_heads} cannot be kept exactly: a gate stands for the {max(heads_per_gate)} query heads "
            f"that share keys and values. The nearest possible numbers are {near}; or give every head a gate with "
            "inject_gates(model, group_queries=False)."
        )


def nearest_reachable(num_heads: int, heads_per_gate: tuple[int, ...]) -> int:
    """Return the number of heads nearest to the wanted one, and at least one, that some choice of gates has."""
    if _reachable(heads_per_gate) >> num_heads & 1:
        return num_heads
    return min(_neighbours(num_heads, heads_per_gate), key=lambda near: (abs(near - num_heads), near))


def select_gates(scores: Tensor, heads_per_gate: tuple[int, ...], num_heads: int) -> Tensor:
    """Choose the gates with the largest scores that stand for exactly so many heads.

    Where gates stand for different numbers of heads, the choice with the largest sum of score times heads is made.

    Args:
        scores: Shape ``[num_gates]``.
        heads_per_gate: How many heads each gate stands for.
        num_heads: A number that :func:`check_reachable` accepts.

    Returns:
        Numbers of the chosen gates.
    """
    sizes = set(heads_per_gate) - {0}
    if len(sizes) == 1:
        counts = torch.tensor(heads_per_gate, device=scores.device)
        candidates = scores.masked_fill(counts == 0, -torch.inf)
        return candidates.topk(num_heads // sizes.pop()).indices
    return torch.tensor(_knapsack(scores.tolist(), heads_per_gate, num_heads), device=scores.device)


@lru_cache(maxsize=8)
def _reachable(heads_per_gate: tuple[int, ...]) -> int:
    """Return a number whose bit ``n`` says whether some gates together have ``n`` heads."""
    sums = 1
    for heads in heads_per_gate:
        sums |= sums << heads
    return sums


def _neighbours(num_heads: int, heads_per_gate: tuple[int, ...]) -> list[int]:
    sums, total = _reachable(heads_per_gate), sum(heads_per_gate)
    below = next((n for n in range(num_heads - 1, 0, -1) if sums >> n & 1), None)
    above = next((n for n in range(num_heads + 1, total + 1) if sums >> n & 1), None)
    return [n for n in (below, above) if n is not None]


def _knapsack(scores: list[float], heads_per_gate: tuple[int, ...], num_heads: int) -> list[int]:
    best = torch.full((num_heads + 1,), -torch.inf, dtype=torch.float64)
    best[0] = 0.0
    taken = []
    for score, heads in zip(scores, heads_per_gate, strict=True):
        with_gate = torch.full_like(best, -torch.inf)
        if 0 < heads <= num_heads:
            with_gate[heads:] = best[: num_heads + 1 - heads] + score * heads
        taken.append(with_gate > best)
        best = torch.maximum(best, with_gate)
    chosen, left = [], num_heads
    for gate in reversed(range(len(scores))):
        if taken[gate][left]:
            chosen.append(gate)
            left -= heads_per_gate[gate]
    return chosen
