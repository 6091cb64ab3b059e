"""Items of a selection: gates, or one gate of each block where all layers keep equally many."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gating.errors import RemedyError

__all__ = ["FEED_FORWARD", "BlockGates", "Items", "by_rank", "equal_gates", "uniform_items"]

# Kind of the blocks whose gates are of neurons.
FEED_FORWARD = "feed_forward"


class BlockGates(NamedTuple):
    """Name and kind of a block, and the positions of its gates."""

    name: str
    kind: str
    gates: range


class Items(NamedTuple):
    """Items that a selection takes or leaves, in groups of consecutive ones.

    Attributes:
        sizes: Heads, neurons or cost of each item.
        heads: Number of heads of each item.
        groups: Number of items of each group: the gates of a block, or the ranks of a kind.
        least: Least number of heads of each group.
    """

    sizes: tuple[float, ...]
    heads: tuple[int, ...]
    groups: tuple[int, ...]
    least: tuple[int, ...]

    @property
    def whole(self) -> tuple[int, ...]:
        """Sizes as whole numbers, those of heads and neurons."""
        return tuple(map(int, self.sizes))


def equal_gates(blocks: Sequence[BlockGates], units_per_gate: Sequence[int]) -> dict[tuple[str, int], Tensor]:
    """Return the gates of each block, for each kind of blocks and size of gates.

    Args:
        blocks: Blocks with the gates.
        units_per_gate: Number of heads or neurons of each gate; gates without any are left out.

    Returns:
        Positions of gates, ``[num_blocks, num_gates_per_block]``, by kind and size.

    Raises:
        InputError: Blocks of one kind have different gates.

    Example:
        >>> blocks = [BlockGates("first", "self", range(2)), BlockGates("second", "self", range(2, 4))]
        >>> equal_gates(blocks, [1, 1, 1, 1])
        {('self', 1): tensor([[0, 1],
                [2, 3]])}
    """
    found = {}
    for kind in dict.fromkeys(block.kind for block in blocks):
        own = [block for block in blocks if block.kind == kind]
        for block in own:
            _check_equal(own[0], block, units_per_gate)
        for size in sorted({units_per_gate[gate] for gate in own[0].gates} - {0}):
            rows = [[gate for gate in block.gates if units_per_gate[gate] == size] for block in own]
            found[kind, size] = torch.tensor(rows, device="cpu")
    return found


def by_rank(gates: Tensor, scores: Tensor) -> Tensor:
    """Return the gates of each block with the best one first.

    Args:
        gates: Gates of each block, ``[num_blocks, num_gates_per_block]``.
        scores: Score of each gate.

    Example:
        >>> by_rank(torch.tensor([[0, 1], [2, 3]]), torch.tensor([1.0, 2.0, 9.0, 3.0])).tolist()
        [[1, 0], [2, 3]]
    """
    return gates.gather(1, scores[gates].argsort(dim=1, descending=True, stable=True))


def uniform_items(
    blocks: Sequence[BlockGates],
    matrices: Mapping[tuple[str, int], Tensor],
    sizes: Sequence[float],
    heads: Sequence[int],
    least: Mapping[str, int],
) -> Items:
    """Return the items of equal layers: the best gate of every block of a kind, the second best ones, and so on.

    Args:
        blocks: Blocks with the gates.
        matrices: Gates of each block from :func:`equal_gates`; those of one block have the same size in each.
        sizes: Heads, neurons or cost of each gate.
        heads: Number of heads of each gate.
        least: Least number of heads of each block, by kind.
    """
    ranks = [(kind, rank) for (kind, _), matrix in matrices.items() for rank in matrix.T.tolist()]
    num_ranks = Counter(kind for kind, _ in ranks)
    num_blocks = Counter(block.kind for block in blocks)
    return Items(
        sizes=tuple(sum(sizes[gate] for gate in rank) for _, rank in ranks),
        heads=tuple(sum(heads[gate] for gate in rank) for _, rank in ranks),
        groups=tuple(num_ranks.values()),
        least=tuple(least[kind] * num_blocks[kind] for kind in num_ranks),
    )


def _check_equal(first: BlockGates, block: BlockGates, units_per_gate: Sequence[int]) -> None:
    sizes = [sorted(units_per_gate[gate] for gate in each.gates) for each in (first, block)]
    if sizes[0] != sizes[1]:
        unit = "neurons" if block.kind == FEED_FORWARD else "heads"
        raise RemedyError(
            f"Layers cannot keep equally many: {first.name} has {sum(sizes[0])} {unit} with {len(sizes[0])} gates, and "
            f"{block.name} has {sum(sizes[1])} with {len(sizes[1])}. Let them differ with ",
            python="uniform=False.",
            command="objective.uniform=false.",
        )
