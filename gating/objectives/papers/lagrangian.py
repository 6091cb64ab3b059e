"""A target sparsity held by two learned multipliers (CoFi: Xia et al. 2022, arXiv 2204.00408)."""

from typing import Any

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.objectives.base import KeepsBudget
from gating.objectives.expected_count import EqualLayers

__all__ = ["Lagrangian"]


class Lagrangian(KeepsBudget):
    """An objective that adds ``lambda_1 (s - t) + lambda_2 (s - t)^2`` to the loss and trains the lambdas by ascent.

    ``s`` is the expected sparsity of the gates and ``t`` the target, which rises linearly from zero during the warm-up
    of the search (the paper's ``L_c``, ``L0Module.lagrangian_regularization`` in the authors' program; after Wang et
    al. 2020, arXiv 1910.04732). Both lambdas start at zero and are trained by the optimizer of the gates at their
    learning rate, as in that program. If each kind of attention has a budget, it has its own lambdas.

    Differences from CoFi: CoFi also prunes whole layers and hidden dimensions, and counts sparsity in parameters; here
    it is counted in heads or neurons, or with gates on both in the cost for which they compete. CoFi distills from the
    dense model, which is not part of an objective here. And CoFi ends near its target; here the heads and neurons with
    the largest ``log_alpha`` that meet the budget stay.

    Attributes:
        lambda_1, lambda_2: Multipliers, ``[num_parts]``.
        target_sparsity: ``t`` of each part, ``[num_parts]``.
    """

    target_sparsity: Tensor
    _weights: Tensor

    def __init__(self, **budget: Any) -> None:
        """Set the target; the arguments are those of :class:`~gating.objectives.ExactBudget`.

        The schedule is the rise of the target; before its start there is no penalty.
        """
        super().__init__(**budget)
        self._set_up(num_parts=1)
        self._started = False

    def attach(self, gates: HeadGates) -> None:
        """Start with multipliers of zero for each part of the gates with a budget."""
        super().attach(gates)
        parts = self._parts
        self._set_up(num_parts=len(parts))
        self._started = False
        weights = torch.zeros(len(parts), gates.log_alpha.numel())
        for row, part in zip(weights, parts, strict=True):
            row[list(part.gates)] = torch.tensor(part.sizes, dtype=torch.float32)
        self.register_buffer("_weights", weights, persistent=False)
        if self._budget.uniform:
            gates.constraint = EqualLayers(parts).to(gates.log_alpha.device)
        if not gates.log_alpha.is_meta:
            self.to(gates.log_alpha.device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the target for this share of the search."""
        super().update(gates, progress)
        # Gates start with a probability of 0.98. A higher target would make the multipliers open them first.
        limits = self._limits(progress, total=0.98)
        for index, (part, limit) in enumerate(zip(self._parts, limits, strict=True)):
            self.target_sparsity[index] = 1 - limit / part.total
        self._started = progress >= self._schedule.earliest

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return ``lambda_1 (s - t) + lambda_2 (s - t)^2``, a scalar; zero before the start."""
        self.check_search(gates)
        # A product, not a constant: distributed training needs a gradient of every parameter.
        factor = 1.0 if self._started else 0.0
        expected_open = (gates.prob_open() * self._weights).sum(dim=1)
        missed = 1 - expected_open / self._weights.sum(dim=1) - self.target_sparsity
        return factor * (self.lambda_1 * missed + self.lambda_2 * missed**2).sum()

    def target(self, gates: HeadGates) -> float:
        """Return the number of heads or neurons that should be open now; with gates on both, the share of cost."""
        self.check_search(gates)
        shares = (1 - self.target_sparsity).tolist()
        return self._amount([share * part.total for share, part in zip(shares, self._parts, strict=True)])

    def _set_up(self, *, num_parts: int) -> None:
        """Start with multipliers and targets of zero."""
        present = [getattr(self, name, None) for name in ("lambda_1", "lambda_2")]
        if any(one is None or one.is_meta or one.is_inference() or len(one) != num_parts for one in present):
            self.lambda_1 = nn.Parameter(torch.zeros(num_parts))
            self.lambda_2 = nn.Parameter(torch.zeros(num_parts))
        # The same parameters in a second search: an optimizer may have them.
        for multiplier in (self.lambda_1, self.lambda_2):
            multiplier.data.zero_()
            multiplier.grad = None
        self.register_buffer("target_sparsity", torch.zeros(num_parts))
