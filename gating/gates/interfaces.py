"""The interfaces of distributions in place of the hard-concrete one, and of the objectives that choose gates."""

from typing import Any, Protocol

from torch import Tensor

__all__ = ["GateChoice", "GateSampler"]


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


class GateChoice(Protocol):
    """The part of objectives (:class:`~gating.objectives.Objective`) that chooses the gates to keep."""

    def kept(self, gates: Any) -> Tensor | None:
        """Return the gates to keep, a boolean tensor ``[num_gates]``; None for the open ones."""
        ...

    def target(self, gates: Any) -> float:
        """Return the number of heads, of neurons, or the share of cost that it keeps; NaN if it sets none."""
        ...
