"""The interface of distributions in place of the hard-concrete one."""

from typing import Protocol

from torch import Tensor

__all__ = ["GateSampler"]


class GateSampler(Protocol):
    """Samplers make gate values from ``log_alpha``, in place of the hard-concrete distribution.

    A sampler is a submodule of the gates, so that its buffers are in checkpoints. Each method takes the locations,
    ``[num_gates]``, and returns a float32 tensor of the same shape.
    """

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the values for one forward pass in training; differentiable if the gates are trained."""
        ...

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the deterministic values for evaluation."""
        ...

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the probability that each gate is open."""
        ...
