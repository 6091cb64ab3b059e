"""What a budget is about: all gates of a model together, or those of each kind of attention apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.gates.sampler import GateSampler
from gating.objectives.selection import nearest_reachable, select_gates

__all__ = ["BudgetPart", "PerPart", "modules_of", "parts_of", "per_part"]


@dataclass(frozen=True)
class BudgetPart:
    """Gates that share a budget.

    Attributes:
        kind: Which kind of attention they belong to; None for all gates of a model.
        indices: Their numbers among all gates.
        heads_per_gate: How many heads each of them stands for.
        block_names: Names of their attention blocks.
        block_sizes: How many of them each block has.
    """

    kind: str | None
    indices: tuple[int, ...]
    heads_per_gate: tuple[int, ...]
    block_names: tuple[str, ...]
    block_sizes: tuple[int, ...]

    @property
    def num_heads(self) -> int:
        """Number of heads that they stand for."""
        return sum(self.heads_per_gate)

    def nearest(self, num_heads: float, *, min_per_layer: int = 0) -> int:
        """Return the number of heads nearest to a wanted one that these gates, and layers with a minimum, can keep."""
        return nearest_reachable(
            round(num_heads), self.heads_per_gate, block_sizes=self.block_sizes, min_per_layer=min_per_layer
        )

    def choose(self, scores: Tensor, num_heads: int, *, min_per_layer: int = 0) -> Tensor:
        """Return the numbers, among all gates, of those with the largest scores that stand for so many heads.

        Args:
            scores: A score for a head of each gate of the model, ``[num_gates]``.
            num_heads: A number from :meth:`nearest`, or another that these gates can keep.
            min_per_layer: How many heads each block keeps at least.
        """
        indices = torch.tensor(self.indices, device=scores.device)
        chosen = select_gates(
            scores[indices],
            self.heads_per_gate,
            num_heads,
            block_sizes=self.block_sizes,
            min_per_layer=min_per_layer,
        )
        return indices[chosen]


def parts_of(gates: HeadGates, *, by_kind: bool) -> list[BudgetPart]:
    """Return a part for each kind of attention that has gates, in the order of their first blocks, or all as one."""
    kinds = dict.fromkeys(gates.block_kinds if by_kind else [None])
    return [_part(gates, kind) for kind in kinds]


class PerPart(nn.Module):
    """Treats the gates of each part by a module of its own: constraints, or samplers, of which each sees one part only.

    Attributes:
        parts: The modules, by the kind of attention.
    """

    _indices: Tensor
    _back: Tensor

    def __init__(self, parts: Sequence[BudgetPart], modules: Sequence[nn.Module]) -> None:
        """Args: ``modules`` are those of ``parts``, in their order; together the parts have every gate once."""
        super().__init__()
        self.parts = nn.ModuleDict({str(part.kind): module for part, module in zip(parts, modules, strict=True)})
        indices = torch.tensor([index for part in parts for index in part.indices])
        self.register_buffer("_indices", indices, persistent=False)
        self.register_buffer("_back", indices.argsort(), persistent=False)
        self._sizes = [len(part.indices) for part in parts]

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the constrained locations."""
        return self._map(lambda module, locations: module(locations), log_alpha)

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the values for one forward pass in training."""
        return self._map(lambda module, locations: cast(GateSampler, module).sample(locations), log_alpha)

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the deterministic values."""
        return self._map(lambda module, locations: cast(GateSampler, module).values(locations), log_alpha)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return how probable it is that each gate is open."""
        return self._map(lambda module, locations: cast(GateSampler, module).prob_open(locations), log_alpha)

    def _map(self, call: Callable[[nn.Module, Tensor], Tensor], log_alpha: Tensor) -> Tensor:
        pieces = log_alpha[self._indices].split(self._sizes)
        return torch.cat([call(module, piece) for module, piece in zip(self.parts.values(), pieces, strict=True)])[
            self._back
        ]


def per_part(parts: Sequence[BudgetPart], modules: Sequence[nn.Module]) -> nn.Module:
    """Return what treats each part by its module: the module itself where there is one part."""
    return modules[0] if len(parts) == 1 else PerPart(parts, modules)


def modules_of(module: nn.Module | None) -> list[nn.Module]:
    """Return the modules that :func:`per_part` was given."""
    assert module is not None, "attach() the objective to the gates first"
    return list(module.parts.values()) if isinstance(module, PerPart) else [module]


def _part(gates: HeadGates, kind: str | None) -> BudgetPart:
    indices: list[int] = []
    names, sizes, first = [], [], 0
    for name, size, its_kind in zip(gates.block_names, gates.block_sizes, gates.block_kinds, strict=True):
        if kind in (None, its_kind):
            indices += range(first, first + size)
            names.append(name)
            sizes.append(size)
        first += size
    heads = tuple(gates.heads_per_gate[index] for index in indices)
    return BudgetPart(kind, tuple(indices), heads, tuple(names), tuple(sizes))
