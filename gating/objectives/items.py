"""Items of layers that keep equally many units: one gate of each block."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gating.errors import RemedyError
from gating.objectives.selection import Items
from gating.units import UnitName

__all__ = ["BlockGates", "by_rank", "equal_gates", "uniform_items"]


class BlockGates(NamedTuple):
    """Name, kind and unit of a block, and the positions of its gates."""

    name: str
    kind: str
    unit: UnitName
    gates: range


def equal_gates(blocks: Sequence[BlockGates], units_per_gate: Sequence[int]) -> dict[tuple[str, int], Tensor]:
    """Return the gates of each block, for each kind of blocks and size of gates.

    Args:
        blocks: Blocks with the gates.
        units_per_gate: Number of units of each gate; gates without any are left out.

    Returns:
        Positions of gates, ``[num_blocks, num_gates_per_block]``, by kind and size.

    Raises:
        InputError: Blocks of one kind have different gates.

    Example:
        >>> blocks = [BlockGates(name, "self", "heads", range(at, at + 2)) for name, at in (("a", 0), ("b", 2))]
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
    least: Mapping[str, int],
    *,
    units: Sequence[int],
    costs: Sequence[float],
) -> Items:
    """Return the items of equal layers: the best gate of every block of a kind, the second best ones, and so on.

    Args:
        blocks: Blocks with the gates.
        matrices: Gates of each block from :func:`equal_gates`; those of one block have the same size in each.
        least: Least number of units of each block, by kind.
        units: Number of units of each gate.
        costs: Cost of each gate, if any.
    """
    ranks = [(kind, rank) for (kind, _), matrix in matrices.items() for rank in matrix.T.tolist()]
    num_ranks = Counter(kind for kind, _ in ranks)
    num_blocks = Counter(block.kind for block in blocks)
    return Items(
        units=tuple(sum(units[gate] for gate in rank) for _, rank in ranks),
        groups=tuple(num_ranks.values()),
        least=tuple(least[kind] * num_blocks[kind] for kind in num_ranks),
        costs=tuple(sum(costs[gate] for gate in rank) for _, rank in ranks) if costs else (),
    )


def _check_equal(first: BlockGates, block: BlockGates, units_per_gate: Sequence[int]) -> None:
    sizes = [sorted(units_per_gate[gate] for gate in each.gates) for each in (first, block)]
    if sizes[0] != sizes[1]:
        raise RemedyError(
            f"Layers cannot keep equally many: {first.name} has {sum(sizes[0])} {block.unit} with {len(sizes[0])} "
            f"gates, and {block.name} has {sum(sizes[1])} with {len(sizes[1])}. Let them differ with ",
            python="uniform=False.",
            command="objective.uniform=false.",
        )
