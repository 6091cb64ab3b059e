"""Several optimizers as one, for the automatic optimization of Lightning."""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["CombinedOptimizer"]


class CombinedOptimizer(torch.optim.Optimizer):
    """Optimizers of different parameters that step together and share one list of groups and one state.

    Schedules, gradient clipping, mixed precision and checkpoints see one optimizer, so that a step counts once.

    Example:
        >>> first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> adam, sgd = torch.optim.AdamW(first.parameters()), torch.optim.SGD(second.parameters())
        >>> len(CombinedOptimizer(adam, sgd).param_groups)
        2
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        """Args: ``optimizers`` are used by this one alone from now on."""
        self._optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        for optimizer in optimizers:
            self.state.update(optimizer.state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of each optimizer.

        Args:
            closure: Function that computes the gradients and returns the loss; called once.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._optimizers:
            optimizer.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore groups and state, and share them again."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let each optimizer use its part of the groups, and the common state."""
        start = 0
        for optimizer in self._optimizers:
            stop = start + len(optimizer.param_groups)
            optimizer.state, optimizer.param_groups = self.state, self.param_groups[start:stop]
            start = stop
