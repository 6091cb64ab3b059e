"""Constraints and samplers of gates with a budget for each kind of attention."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gating.errors import OperationError
from gating.gates.sampler import GateSampler
from gating.objectives.budget import BudgetPart

__all__ = ["PerPart", "modules_of", "per_part"]


class PerPart(nn.Module):
    """A constraint or sampler that applies a module of its own to the gates of each part.

    Attributes:
        parts: The modules, by the kind of attention.
    """

    _indices: Tensor
    _back: Tensor

    def __init__(self, parts: Sequence[BudgetPart], modules: Sequence[nn.Module]) -> None:
        """Store a module for each part.

        Args:
            parts: Parts that together have every gate once.
            modules: Constraints or samplers, one for each part.
        """
        super().__init__()
        self.parts = nn.ModuleDict({str(part.kind): module for part, module in zip(parts, modules, strict=True)})
        indices = torch.tensor([index for part in parts for index in part.indices])
        self.register_buffer("_indices", indices, persistent=False)
        self.register_buffer("_back", indices.argsort(), persistent=False)
        self._sizes = [len(part.indices) for part in parts]

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the constrained locations, ``[num_gates]``."""
        return self._map(lambda module, locations: module(locations), log_alpha)

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the values for one forward pass in training, ``[num_gates]``."""
        return self._map(lambda module, locations: cast(GateSampler, module).sample(locations), log_alpha)

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the deterministic values, ``[num_gates]``."""
        return self._map(lambda module, locations: cast(GateSampler, module).values(locations), log_alpha)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the probability that each gate is open, ``[num_gates]``."""
        return self._map(lambda module, locations: cast(GateSampler, module).prob_open(locations), log_alpha)

    def _map(self, call: Callable[[nn.Module, Tensor], Tensor], log_alpha: Tensor) -> Tensor:
        pieces = log_alpha[self._indices].split(self._sizes)
        return torch.cat([call(module, piece) for module, piece in zip(self.parts.values(), pieces, strict=True)])[
            self._back
        ]


def per_part(parts: Sequence[BudgetPart], modules: Sequence[nn.Module]) -> nn.Module:
    """Return one module for the gates of all parts: the module itself if there is one part."""
    return modules[0] if len(parts) == 1 else PerPart(parts, modules)


def modules_of(module: nn.Module | None) -> list[nn.Module]:
    """Return the modules of the parts, as they were given to :func:`per_part`.

    Raises:
        OperationError: There is no module: the objective has not been attached to the gates.
    """
    if module is None:
        raise OperationError("The objective is not attached to these gates: call its attach(gates) first.")
    return list(module.parts.values()) if isinstance(module, PerPart) else [module]
