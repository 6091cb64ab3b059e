"""How many heads are to be left, and which ones under a given ranking."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gating.gates import HeadGates
from gating.objectives.base import resolve_budget
from gating.selection import check_reachable, fewest_heads, nearest_reachable, select_gates

__all__ = ["HeadBudget"]


@dataclass(frozen=True)
class HeadBudget:
    """The number of heads that an objective is asked for, with what every layer keeps at least.

    Attributes:
        num_heads: How many heads to keep.
        keep: Which share of the heads to keep, instead; a quarter when neither is given.
        min_per_layer: How many heads every attention block with gates keeps at least.
    """

    num_heads: int | None = None
    keep: float | None = None
    min_per_layer: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.min_per_layer, int) or self.min_per_layer < 0:
            raise ValueError(f"min_per_layer={self.min_per_layer} is no number of heads: give 0, 1, 2 or so.")

    def resolve(self, gates: HeadGates) -> int:
        """Return the budget as a number of heads.

        A share is rounded to a number of heads that gates can keep.

        Raises:
            ValueError: The budget is out of range, gates for groups of heads cannot keep exactly so many, or layers
                cannot keep what they have to.
        """
        keep = 0.25 if self.num_heads is None and self.keep is None else self.keep
        num_heads = resolve_budget(self.num_heads, keep, total=gates.num_heads)
        self._check_minimum(gates, num_heads)
        if self.num_heads is None:
            return self.nearest(gates, num_heads)
        check_reachable(
            num_heads, gates.heads_per_gate, block_sizes=gates.block_sizes, min_per_layer=self.min_per_layer
        )
        return num_heads

    def nearest(self, gates: HeadGates, num_heads: float) -> int:
        """Return the number of heads nearest to a wanted one that gates, and layers with a minimum, can keep."""
        return nearest_reachable(
            round(num_heads), gates.heads_per_gate, block_sizes=gates.block_sizes, min_per_layer=self.min_per_layer
        )

    def choose(self, gates: HeadGates, scores: Tensor, *, num_heads: int | None = None) -> Tensor:
        """Return which gates have the largest scores and stand for exactly so many heads.

        Args:
            gates: The gates.
            scores: A score for a head of each gate, ``[num_gates]``.
            num_heads: A number from :meth:`resolve` or :meth:`nearest`; the budget when left out.

        Returns:
            Truth values, ``[num_gates]``.
        """
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        indices = select_gates(
            scores.detach(),
            gates.heads_per_gate,
            self.resolve(gates) if num_heads is None else num_heads,
            block_sizes=gates.block_sizes,
            min_per_layer=self.min_per_layer,
        )
        return chosen.index_fill(0, indices, True)

    def _check_minimum(self, gates: HeadGates, num_heads: int) -> None:
        if not self.min_per_layer:
            return
        first = 0
        for name, size in zip(gates.block_names, gates.block_sizes, strict=True):
            heads = sum(gates.heads_per_gate[first : first + size])
            if heads < self.min_per_layer:
                raise ValueError(f"min_per_layer={self.min_per_layer} is more than the {heads} heads of {name}.")
            first += size
        fewest = fewest_heads(gates.heads_per_gate, block_sizes=gates.block_sizes, min_per_layer=self.min_per_layer)
        if num_heads < fewest:
            raise ValueError(
                f"{num_heads} heads are too few for min_per_layer={self.min_per_layer} in each of "
                f"{len(gates.block_sizes)} attention blocks: that takes {fewest}. Keep more, or lower min_per_layer."
            )
