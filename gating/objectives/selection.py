"""Selection of gates by scores, where a gate may stand for several heads and each layer may have a minimum."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gating.errors import RemedyError
from gating.objectives.knapsack import select_exactly

__all__ = ["check_reachable", "fewest_heads", "nearest_reachable", "select_gates"]


def check_reachable(
    num_heads: int,
    heads_per_gate: tuple[int, ...],
    *,
    block_sizes: Sequence[int] = (),
    min_per_layer: int = 0,
    kind: str | None = None,
) -> None:
    """Raise ``RemedyError`` unless some selection of gates has exactly ``num_heads`` heads.

    Args:
        num_heads: Number of heads to keep.
        heads_per_gate: Number of heads of each gate.
        block_sizes: Number of gates of each attention block; needed with ``min_per_layer``.
        min_per_layer: Least number of heads that every attention block keeps.
        kind: Kind of attention that the gates belong to, for the message.

    Example:
        >>> check_reachable(3, (2, 2))  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        gating.errors.RemedyError: num_heads=3 cannot be kept exactly
    """
    reachable = _reachable(heads_per_gate, tuple(block_sizes), min_per_layer)
    if 1 <= num_heads <= sum(heads_per_gate) and not reachable >> num_heads & 1:
        name = f"num_heads.{kind}" if kind else "num_heads"
        neighbors = _neighbors(num_heads, reachable)
        near = f"number{'s are' if len(neighbors) > 1 else ' is'} {' or '.join(map(str, neighbors))}"
        raise RemedyError(
            f"{name}={num_heads} cannot be kept exactly: a gate stands for the {max(heads_per_gate)} query heads "
            f"that share keys and values. The nearest possible {near}; or give every head a gate with ",
            python="inject_gates(model, group_queries=False).",
            command="gates.group_queries=false.",
        )


def nearest_reachable(
    num_heads: int, heads_per_gate: tuple[int, ...], *, block_sizes: Sequence[int] = (), min_per_layer: int = 0
) -> int:
    """Return the number of heads nearest to ``num_heads``, but not 0, that some selection of gates has.

    Example:
        >>> nearest_reachable(5, (2, 2, 2, 2))
        4
    """
    reachable = _reachable(heads_per_gate, tuple(block_sizes), min_per_layer)
    if reachable >> num_heads & 1:
        return num_heads
    return min(_neighbors(num_heads, reachable), key=lambda near: (abs(near - num_heads), near))


def fewest_heads(heads_per_gate: tuple[int, ...], *, block_sizes: Sequence[int], min_per_layer: int) -> int:
    """Return the smallest number of heads with ``min_per_layer`` in every attention block, which must have as many.

    Example:
        >>> fewest_heads((2, 2, 2, 2), block_sizes=(2, 2), min_per_layer=1)
        4
    """
    reachable = _reachable(heads_per_gate, tuple(block_sizes), min_per_layer)
    return (reachable & -reachable).bit_length() - 1


def select_gates(
    scores: Tensor,
    heads_per_gate: tuple[int, ...],
    num_heads: int,
    *,
    block_sizes: Sequence[int] = (),
    min_per_layer: int = 0,
) -> Tensor:
    """Select the gates with the largest scores that stand for exactly ``num_heads`` heads.

    If gates have different numbers of heads, the selection maximizes the sum of score times heads.

    Args:
        scores: Score of one head of each gate, ``[num_gates]``.
        heads_per_gate: Number of heads of each gate.
        num_heads: A number that :func:`check_reachable` accepts.
        block_sizes: Number of gates of each attention block; needed with ``min_per_layer``.
        min_per_layer: Least number of heads that every attention block keeps: its best ones come first.

    Returns:
        Indices of the selected gates.

    Example:
        >>> select_gates(torch.tensor([0.3, 0.9, 0.8, 0.1]), (1, 1, 1, 1), 2).tolist()
        [1, 2]
        >>> select_gates(torch.tensor([0.3, 0.9, 0.8, 0.1]), (2, 1, 1, 2), 3).tolist()
        [0, 1]
    """
    sizes = set(heads_per_gate) - {0}
    if len(sizes) == 1:
        size = sizes.pop()
        candidates = scores
        if 0 in heads_per_gate:
            counts = torch.tensor(heads_per_gate, device=scores.device)
            candidates = scores.masked_fill(counts == 0, -torch.inf)
        if min_per_layer:
            candidates = _favor_best_of_each(candidates, block_sizes, -(-min_per_layer // size))
        return candidates.topk(num_heads // size).indices
    values = scores.double().cpu() * torch.tensor(heads_per_gate)
    chosen = select_exactly(values, heads_per_gate, num_heads, groups=block_sizes, least=min_per_layer)
    return chosen.to(scores.device)


def _favor_best_of_each(scores: Tensor, block_sizes: Sequence[int], num_gates: int) -> Tensor:
    """Return the scores with infinity for the best gates of each block."""
    favored = scores.clone()
    for block in favored.split(list(block_sizes)):
        block.index_fill_(0, block.topk(num_gates).indices, torch.inf)
    return favored


@lru_cache(maxsize=32)
def _reachable(heads_per_gate: tuple[int, ...], block_sizes: tuple[int, ...], min_per_layer: int) -> int:
    """Return an integer whose bit ``n`` is set if some gates together have ``n`` heads."""
    total = 1
    for block in _split(heads_per_gate, block_sizes if min_per_layer else ()):
        sums = 1
        for heads in block:
            sums |= sums << heads
        sums = sums >> min_per_layer << min_per_layer
        combined = 0
        for heads in range(sums.bit_length()):
            if sums >> heads & 1:
                combined |= total << heads
        total = combined
    return total


def _neighbors(num_heads: int, reachable: int) -> list[int]:
    below = next((n for n in range(num_heads - 1, 0, -1) if reachable >> n & 1), None)
    above = next((n for n in range(num_heads + 1, reachable.bit_length()) if reachable >> n & 1), None)
    return [n for n in (below, above) if n is not None]


def _split(heads_per_gate: tuple[int, ...], block_sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    first = 0
    for size in block_sizes or (len(heads_per_gate),):
        yield heads_per_gate[first : first + size]
        first += size
