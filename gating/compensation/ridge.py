"""Solve one output projection by ridge regression, from statistics of its inputs and of the error of its output."""

import torch
from torch import Tensor

from gating.errors import InputError


class Ridge:
    """Sums over positions, and held-out positions, for the change of one projection.

    With the inputs ``x``, a column of ones for the bias among them, and the residual ``r``, which the output should
    have in addition, the change minimizes ``sum |r - dW x|^2 / |t|^2 + ridge mean(diag A) |dW|^2``: it is ``dW = (sum r
    x' / |t|^2) (A + ridge mean(diag A) I)^-1`` with ``A = sum x x' / |t|^2``. The dense stream ``t`` is there since the
    few positions with very large states would outweigh all others.
    """

    def __init__(self, *, has_bias: bool) -> None:
        """Begin with no positions."""
        self._has_bias = has_bias
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None
        self._held: list[tuple[Tensor, Tensor]] = []
        self.num_positions = 0

    def add(self, inputs: Tensor, residual: Tensor, weights: Tensor, *, held_out: bool) -> None:
        """Add positions in float32.

        Args:
            inputs: Inputs that stay, ``[positions, features]``.
            residual: What the output should have in addition, ``[positions, hidden_size]``.
            weights: Square root of the weight of each position, ``[positions, 1]``.
            held_out: Whether they judge the solution instead.
        """
        if self._has_bias:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        inputs, residual = inputs * weights, residual * weights
        if held_out:
            self._held.append((inputs, residual))
            return
        self.num_positions += len(inputs)
        gram, cross = inputs.T @ inputs, residual.T @ inputs
        self._gram = gram if self._gram is None else self._gram.add_(gram)
        self._cross = cross if self._cross is None else self._cross.add_(cross)

    def solve(self, ridge: float) -> tuple[Tensor, float, float]:
        """Return the change of weights, bias last, ``[hidden_size, features]``, and the held-out errors around it.

        These are means over positions of the squared residual, before and after the change.
        """
        assert self._gram is not None
        assert self._cross is not None
        # Not all devices have double precision.
        device = "cpu" if self._gram.device.type == "mps" else self._gram.device
        gram, cross = self._gram.to(device, torch.float64), self._cross.to(device, torch.float64)
        if not (gram.isfinite().all() and cross.isfinite().all()):
            raise InputError("The model or a batch gives infinite values: no weights were changed.")
        num_inputs = len(gram) - self._has_bias
        diagonal = gram.diagonal()[:num_inputs]
        least = torch.finfo(torch.float32).tiny
        if num_inputs:
            diagonal += max(least, ridge * float(diagonal.mean()))
        gram.diagonal().clamp_min_(least)
        change = torch.linalg.solve(gram, cross.T).T.to(self._gram)
        before = torch.stack([residual.square().sum() for _, residual in self._held])
        after = torch.stack([(residual - inputs @ change.T).square().sum() for inputs, residual in self._held])
        number = max(1, sum(len(inputs) for inputs, _ in self._held))
        return change, float(before.sum()) / number, float(after.sum()) / number
