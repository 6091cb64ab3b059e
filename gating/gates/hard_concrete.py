"""The hard-concrete distribution of Louizos et al. 2018 (arXiv 1712.01312), and base classes of modules of gates.

A gate value ``z`` in [0, 1] is drawn from a binary concrete variable that is stretched to ``(gamma, zeta)`` and
clipped, so that exact zeros and ones have positive probability while the gradient reaches the parameter ``log_alpha``.

Tensors may have any shape. Results are float32, also under autocast: in half precision the noise would round to 1 and
its log-odds to infinity. The ``temperature`` is ``beta``: lower is closer to a Bernoulli variable. ``stretch_limits``
are ``(gamma, zeta)`` with ``gamma < 0`` and ``zeta > 1``.
"""

import math
from collections.abc import Iterable, Sequence
from typing import SupportsFloat

import torch
from torch import Tensor, nn

from gating.errors import InputError

DEFAULT_TEMPERATURE = 2 / 3
DEFAULT_STRETCH_LIMITS = (-0.1, 1.1)


def are_numbers(*values: object) -> bool:
    """Return whether all values are numbers, of Python, NumPy or PyTorch; a string is none."""
    return all(isinstance(value, SupportsFloat) for value in values)


def check_distribution(temperature: float, stretch_limits: tuple[float, float]) -> None:
    """Raise ``InputError`` unless the temperature is positive, the limits lie around 0 and 1, and all are finite."""
    if not (are_numbers(temperature) and 0 < temperature < math.inf):
        raise InputError(f"The temperature of the gates must be positive and finite, got {temperature!r}.")
    limits = [*stretch_limits] if isinstance(stretch_limits, Iterable) else []
    if not (len(limits) == 2 and are_numbers(*limits) and -math.inf < limits[0] < 0 and 1 < limits[1] < math.inf):
        raise InputError(f"The stretch limits must be a finite number below 0 and one above 1, got {stretch_limits!r}.")


def sample(
    log_alpha: Tensor,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    stretch_limits: tuple[float, float] = DEFAULT_STRETCH_LIMITS,
) -> Tensor:
    """Draw one hard-concrete value in [0, 1] for each location; differentiable (paper, equations 10 and 11)."""
    with _full_precision(log_alpha):
        noise = torch.rand(log_alpha.shape, device=log_alpha.device, dtype=torch.float32)
        log_odds = torch.logit(noise, eps=1e-6)
        return _stretch((log_odds + log_alpha.float()) / temperature, stretch_limits)


def deterministic(log_alpha: Tensor, *, stretch_limits: tuple[float, float] = DEFAULT_STRETCH_LIMITS) -> Tensor:
    """Return ``min(1, max(0, sigmoid(log_alpha) (zeta - gamma) + gamma))``, for evaluation (paper, equation 13)."""
    with _full_precision(log_alpha):
        return _stretch(log_alpha.float(), stretch_limits)


def prob_open(
    log_alpha: Tensor,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    stretch_limits: tuple[float, float] = DEFAULT_STRETCH_LIMITS,
) -> Tensor:
    """Return the probability not to be zero, ``sigmoid(log_alpha - beta log(-gamma / zeta))`` (paper, equation 12)."""
    with _full_precision(log_alpha):
        return torch.sigmoid(log_alpha.float() - open_threshold(temperature, stretch_limits))


def log_alpha_for(
    prob: float,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    stretch_limits: tuple[float, float] = DEFAULT_STRETCH_LIMITS,
) -> float:
    """Return the ``log_alpha`` at which a gate is open with probability ``prob``: the inverse of :func:`prob_open`."""
    if not (are_numbers(prob) and 0 < prob < 1):
        raise InputError(f"The probability of an open gate must be between 0 and 1, both excluded; got {prob!r}.")
    return math.log(prob / (1 - prob)) + open_threshold(temperature, stretch_limits)


def open_threshold(temperature: float, stretch_limits: tuple[float, float]) -> float:
    """Return the ``log_alpha`` of a gate that is zero with probability one half: ``beta log(-gamma / zeta)``."""
    gamma, zeta = stretch_limits
    return temperature * math.log(-gamma / zeta)


def _stretch(logits: Tensor, stretch_limits: tuple[float, float]) -> Tensor:
    gamma, zeta = stretch_limits
    return (torch.sigmoid(logits) * (zeta - gamma) + gamma).clamp(0.0, 1.0)


def _full_precision(tensor: Tensor) -> torch.autocast:
    return torch.autocast(device_type=tensor.device.type, enabled=False)


class FullPrecision(nn.Module):
    """A module that moves to other devices, but not to other dtypes, with its model.

    Gates and multipliers change in many small steps, which half precision would round to zero.
    """

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        to_device = lambda tensor: tensor.to(fn(tensor.reshape(-1)[:0]).device)  # noqa: E731
        return super()._apply(to_device, recurse)  # type: ignore[no-untyped-call]


class GateSampler(FullPrecision):
    """Base class of modules that make gate values from ``log_alpha``, in place of the hard-concrete distribution.

    A sampler is a submodule of the gates, so that its buffers are in checkpoints. Each method takes the locations,
    ``[num_gates]``, and returns a float32 tensor of the same shape; a sampler without noise has :meth:`values` alone.

    Attributes:
        numbers: Numbers such as those of open heads, in checkpoints, too. They are in host memory: each step would wait
            for a buffer on the device.
    """

    def __init__(self, numbers: Sequence[float] = ()) -> None:
        """Set the first numbers."""
        super().__init__()
        self.numbers = list(numbers)

    def get_extra_state(self) -> Tensor:
        """Return the numbers for a checkpoint."""
        return torch.tensor(self.numbers, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Load the numbers from a checkpoint."""
        self.numbers = state.tolist()

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the deterministic values for evaluation."""
        raise NotImplementedError

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the values for one forward pass in training; differentiable if the gates are trained."""
        return self.values(log_alpha)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the probability that each gate is open."""
        return self.values(log_alpha)
