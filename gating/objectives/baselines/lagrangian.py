"""A target sparsity held by two learned multipliers (CoFi: Xia et al. 2022, arXiv 2204.00408)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.gates.full_precision import FullPrecision
from gating.objectives.budget import HeadBudget
from gating.objectives.schedule import BudgetSchedule

__all__ = ["Lagrangian"]


class Lagrangian(FullPrecision):
    """Add ``lambda_1 (s - t) + lambda_2 (s - t)^2`` to the loss, and train the lambdas by gradient ascent.

    ``s`` is the expected sparsity of the gates and ``t`` the target, which rises linearly from none while the search
    warms up (the paper's ``L_c``, ``L0Module.lagrangian_regularization`` in the authors' program; after Wang et al.
    2020, arXiv 1910.04732). Both lambdas start at zero and are trained by the same optimizer and at the same learning
    rate as the gates, as in that program. Where each kind of attention has a budget, it has lambdas of its own.

    What differs from CoFi: it prunes feed-forward layers, whole layers and hidden dimensions too, and counts sparsity
    in parameters; here heads are counted. It starts with a distillation from the dense model, which is no matter of
    the objective. And it misses the target it was given, by as much as the multipliers happen to be off at the end;
    here exactly the heads with the largest ``log_alpha`` stay, as under every budget.
    """

    target_sparsity: Tensor
    _heads: Tensor

    def __init__(
        self,
        *,
        num_heads: int | Mapping[str, int] | None = None,
        keep: float | Mapping[str, float] | None = None,
        min_per_layer: int = 0,
        schedule: BudgetSchedule | None = None,
    ) -> None:
        """Set the target.

        Args:
            num_heads: How many heads to keep, or how many of each kind of attention.
            keep: Which share of the heads to keep, instead, likewise; a quarter when neither is given.
            min_per_layer: How many heads every layer keeps at least; it has a say when the heads are chosen.
            schedule: How the target rises; before its start there is no penalty.
        """
        super().__init__()
        self._set_up(num_parts=1)
        self._budget = HeadBudget(num_heads, keep, min_per_layer)
        self._schedule = schedule or BudgetSchedule()
        self._started = False

    def check(self, gates: HeadGates) -> None:
        """Raise ``InputError`` if the gates cannot keep the budget."""
        self._budget.parts(gates)

    def attach(self, gates: HeadGates) -> None:
        """Check that the target fits the gates."""
        parts = [part for part, _ in self._budget.parts(gates)]
        self._set_up(num_parts=len(parts))
        heads = torch.zeros(len(parts), len(gates.heads_per_gate))
        for row, part in zip(heads, parts, strict=True):
            row[list(part.indices)] = torch.tensor(part.heads_per_gate, dtype=torch.float32)
        self.register_buffer("_heads", heads, persistent=False)
        if not gates.log_alpha.is_meta:
            self.to(gates.log_alpha.device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the target for this share of the search."""
        for index, (part, budget) in enumerate(self._budget.parts(gates)):
            # Gates are not wholly open at the start, and the multipliers must not begin with opening them.
            highest = 0.98 * part.num_heads
            wanted = self._schedule.target(progress, total=highest, budget=min(budget, highest))
            self.target_sparsity[index] = 1 - wanted / part.num_heads
        self._started = progress >= self._schedule.start

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return ``lambda_1 (s - t) + lambda_2 (s - t)^2``; zero before the start."""
        # Nothing, but not without the multipliers: distributed training wants every parameter to have a gradient.
        charge = 1.0 if self._started else 0.0
        open_heads = (gates.prob_open() * self._heads).sum(dim=1)
        missed = 1 - open_heads / self._heads.sum(dim=1) - self.target_sparsity
        return charge * (self.lambda_1 * missed + self.lambda_2 * missed**2).sum()

    def target(self, gates: HeadGates) -> float:
        """Return how many heads should be open at this moment."""
        return float(((1 - self.target_sparsity) * self._heads.sum(dim=1)).sum())

    def kept(self, gates: HeadGates) -> Tensor:
        """Keep the heads with the largest ``log_alpha``."""
        return self._budget.choose(gates, gates.log_alpha)

    def _set_up(self, *, num_parts: int) -> None:
        """Start with multipliers of zero, and no target."""
        self.lambda_1 = nn.Parameter(torch.zeros(num_parts))
        self.lambda_2 = nn.Parameter(torch.zeros(num_parts))
        self.register_buffer("target_sparsity", torch.zeros(num_parts))
