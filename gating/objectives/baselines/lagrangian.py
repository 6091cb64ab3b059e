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
    """An objective that adds ``lambda_1 (s - t) + lambda_2 (s - t)^2`` to the loss and trains the lambdas by ascent.

    ``s`` is the expected sparsity of the gates and ``t`` the target, which rises linearly from zero during the warm-up
    of the search (the paper's ``L_c``, ``L0Module.lagrangian_regularization`` in the authors' program; after Wang et
    al. 2020, arXiv 1910.04732). Both lambdas start at zero and are trained by the optimizer of the gates at their
    learning rate, as in that program. If each kind of attention has a budget, it has its own lambdas.

    Differences from CoFi: CoFi also prunes feed-forward layers, whole layers and hidden dimensions, and counts sparsity
    in parameters; here it is counted in heads. CoFi distills from the dense model, which is not part of an objective
    here. And CoFi ends near its target; here exactly the heads with the largest ``log_alpha`` that meet the budget
    stay.

    Attributes:
        lambda_1, lambda_2: Multipliers, ``[num_parts]``.
        target_sparsity: ``t`` of each part, ``[num_parts]``.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates, objective = inject_gates(model), Lagrangian(keep=0.5)
        >>> objective.attach(gates)
        >>> objective.update(gates, 1.0)
        >>> objective.target_sparsity, objective.target(gates)
        (tensor([0.5000]), 4.0)
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
            num_heads: Number of heads to keep, or a number for each kind of attention.
            keep: Share of the heads to keep, instead, or a share for each kind; a quarter if neither is given.
            min_per_layer: Least number of heads that every layer keeps when the heads are chosen at the end.
            schedule: Rise of the target; before its start there is no penalty.
        """
        super().__init__()
        self._set_up(num_parts=1)
        self._budget = HeadBudget(num_heads, keep, min_per_layer)
        self._schedule = schedule or BudgetSchedule()
        self._started = False

    def check(self, gates: HeadGates) -> None:
        """Raise ``InputError`` if these gates cannot keep the budget."""
        self._budget.parts(gates)

    def attach(self, gates: HeadGates) -> None:
        """Start with multipliers of zero for each part of the gates with a budget."""
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
            # Gates start with a probability of 0.98. A higher target would make the multipliers open them first.
            total = 0.98 * part.num_heads
            num_open = self._schedule.target(progress, total=total, budget=min(budget, total))
            self.target_sparsity[index] = 1 - num_open / part.num_heads
        self._started = progress >= self._schedule.start

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return ``lambda_1 (s - t) + lambda_2 (s - t)^2``, a scalar; zero before the start."""
        # A product, not a constant: distributed training needs a gradient of every parameter.
        factor = 1.0 if self._started else 0.0
        expected_open = (gates.prob_open() * self._heads).sum(dim=1)
        missed = 1 - expected_open / self._heads.sum(dim=1) - self.target_sparsity
        return factor * (self.lambda_1 * missed + self.lambda_2 * missed**2).sum()

    def target(self, gates: HeadGates) -> float:
        """Return the number of heads that should be open now."""
        return float(((1 - self.target_sparsity) * self._heads.sum(dim=1)).sum())

    def kept(self, gates: HeadGates) -> Tensor:
        """Return the gates with the largest ``log_alpha`` that meet the budget."""
        return self._budget.choose(gates, gates.log_alpha)

    def _set_up(self, *, num_parts: int) -> None:
        """Start with multipliers and targets of zero."""
        self.lambda_1 = nn.Parameter(torch.zeros(num_parts))
        self.lambda_2 = nn.Parameter(torch.zeros(num_parts))
        self.register_buffer("target_sparsity", torch.zeros(num_parts))
