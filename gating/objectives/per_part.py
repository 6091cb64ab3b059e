"""Constraints and samplers of gates with several budgets, and of layers that keep equally many."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gating.errors import OperationError
from gating.objectives.base import NOT_ATTACHED
from gating.objectives.parts import BudgetPart, by_rank

__all__ = ["PerPart", "UniformRanks", "modules_of", "per_part"]


class PerPart(nn.Module):
    """A constraint or sampler that applies a module of its own to the gates of each part.

    Attributes:
        parts: The modules, by the kind of attention, or by the unit.
    """

    _indices: Tensor
    _back: Tensor

    def __init__(self, parts: Sequence[BudgetPart], modules: Sequence[nn.Module]) -> None:
        """Store a constraint or sampler for each part; together, the parts have every gate once."""
        super().__init__()
        self.parts = nn.ModuleDict({part.name: module for part, module in zip(parts, modules, strict=True)})
        indices = torch.tensor([index for part in parts for index in part.indices])
        self.register_buffer("_indices", indices, persistent=False)
        self.register_buffer("_back", indices.argsort(), persistent=False)
        self._sizes = [len(part.indices) for part in parts]

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the constrained locations, ``[num_gates]``."""
        return self._map("forward", log_alpha)

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the values for one forward pass in training, ``[num_gates]``."""
        return self._map("sample", log_alpha)

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the deterministic values, ``[num_gates]``."""
        return self._map("values", log_alpha)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the probability that each gate is open, ``[num_gates]``."""
        return self._map("prob_open", log_alpha)

    def _map(self, method: str, log_alpha: Tensor) -> Tensor:
        pieces = log_alpha[self._indices].split(self._sizes)
        found = [getattr(part, method)(piece) for part, piece in zip(self.parts.values(), pieces, strict=True)]
        return torch.cat(found)[self._back]


class UniformRanks(nn.Module):
    """A constraint that makes all blocks of a kind keep equally many: by rank, gates get the mean location over blocks.

    The best gate of each block gets the mean of the best ones, and so on, so that only ranks within a block matter. The
    gradient of each location passes unchanged.
    """

    def __init__(self, part: BudgetPart) -> None:
        """Store the gates; the blocks of each kind must have gates of the same sizes."""
        super().__init__()
        self._num_matrices = len(part.matrices)
        for index, gates in enumerate(part.matrices.values()):
            self.register_buffer(f"gates_{index}", gates, persistent=False)

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the constrained locations, ``[num_gates]``; those of padding are unchanged."""
        own = log_alpha.detach()
        means = own.clone()
        for index in range(self._num_matrices):
            gates = by_rank(self.get_buffer(f"gates_{index}"), own)
            means[gates] = own[gates].mean(dim=0).expand(gates.shape)
        return log_alpha + (means - own)


def per_part(parts: Sequence[BudgetPart], modules: Sequence[nn.Module]) -> nn.Module:
    """Return one module for the gates of all parts: the module itself if there is one part."""
    return modules[0] if len(parts) == 1 else PerPart(parts, modules)


def modules_of(module: nn.Module | None) -> list[nn.Module]:
    """Return the modules of the parts, as they were given to :func:`per_part`.

    Raises:
        OperationError: There is no module: the objective has not been attached to the gates.
    """
    if module is None:
        raise OperationError(NOT_ATTACHED)
    return list(module.parts.values()) if isinstance(module, PerPart) else [module]
