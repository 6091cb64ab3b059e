"""What may stand in for the hard-concrete distribution of the gates."""

from typing import Protocol

from torch import Tensor

__all__ = ["GateSampler"]


class GateSampler(Protocol):
    """Makes gate values from ``log_alpha``, in place of the hard-concrete distribution.

    A module: what it has to remember is in the state of the gates, and so in a checkpoint. Each method takes the
    locations, ``[num_gates]``, and answers with the same shape in float32.
    """

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the values for one forward pass in training, with whatever gradient training needs."""
        ...

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the deterministic values: what evaluation uses."""
        ...

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return how probable it is that each gate is open."""
        ...
