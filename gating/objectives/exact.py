"""The exact budget: the expected number of open heads is held at a schedule that ends at the budget."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gating.gates import HeadGates, hard_concrete
from gating.objectives.budget import BudgetPart, HeadBudget
from gating.objectives.per_part import modules_of, per_part
from gating.objectives.schedule import BudgetSchedule

__all__ = ["ExactBudget", "ExpectedCount"]

# Intervals of the grid that the search for the offset divides.
_NUM_INTERVALS = 100


class ExpectedCount(nn.Module):
    """A constraint that shifts all ``log_alpha`` by one offset, so that the expected number of open heads is a target.

    With ``p_i(c) = sigmoid(log_alpha_i - c - beta log(-gamma / zeta))`` and ``h_i`` the number of heads of a gate, the
    offset ``c`` solves ``sum_i h_i p_i(c) = target``. It is the Lagrange multiplier of the budget, solved for instead
    of learned: heads compete, since one gate can open only as others close.

    Attributes:
        target: Expected number of open heads, a scalar buffer.
        heads_per_gate: Number of heads of each gate, ``[num_gates]``.

    Example:
        >>> budget = ExpectedCount(1.5, temperature=2 / 3, stretch_limits=(-0.1, 1.1))
        >>> shifted = budget(torch.tensor([-1.0, 0.0, 2.0]))
        >>> round(hard_concrete.prob_open(shifted).sum().item(), 3)
        1.5
    """

    target: Tensor
    heads_per_gate: Tensor

    def __init__(
        self,
        target: float,
        *,
        temperature: float,
        stretch_limits: tuple[float, float],
        heads_per_gate: Sequence[int] = (1,),
    ) -> None:
        """Set the target.

        Args:
            target: Expected number of open heads.
            temperature: ``beta`` of the gates.
            stretch_limits: ``(gamma, zeta)`` of the gates.
            heads_per_gate: Number of heads of each gate, or one number for all.
        """
        super().__init__()
        self.register_buffer("heads_per_gate", torch.tensor(heads_per_gate, dtype=torch.float32), persistent=False)
        self.register_buffer("target", torch.tensor(float(target)))
        self.temperature = temperature
        self.stretch_limits = stretch_limits

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the shifted locations, ``[num_gates]``; differentiable, the offset included."""
        return log_alpha - self.offset(log_alpha)

    def offset(self, log_alpha: Tensor) -> Tensor:
        """Solve for the offset ``c``, a scalar: a search without gradient, then one Newton step with gradient.

        The derivative of the Newton step, ``dc / d log_alpha_i = h_i p_i' / sum_j h_j p_j'``, is that of the implicit
        function.
        """
        # P(open) is a sigmoid around a threshold. Autocast would compute it in half precision.
        with torch.autocast(device_type=log_alpha.device.type, enabled=False):
            logits = log_alpha.float() - hard_concrete.open_threshold(self.temperature, self.stretch_limits)
            start = self._search(logits.detach())
            probs = torch.sigmoid(logits - start)
            with torch.no_grad():
                slope = (probs * (1 - probs) * self.heads_per_gate).sum().clamp_min(1e-6)
            return start + ((probs * self.heads_per_gate).sum() - self.target) / slope

    @torch.no_grad()
    def _search(self, logits: Tensor) -> Tensor:
        """Return the offset to about 1e-4.

        Each of three grids divides the interval of the one before. Bisection would take more operations, and a test of
        convergence would wait for the device.
        """
        points = torch.arange(_NUM_INTERVALS + 1, device=logits.device, dtype=logits.dtype)
        smallest, largest = logits.aminmax()
        low, width = smallest - 20.0, (largest - smallest + 40.0) / _NUM_INTERVALS
        for _ in range(3):
            grid = low + width * points
            counts = (torch.sigmoid(logits - grid.unsqueeze(1)) * self.heads_per_gate).sum(dim=1)
            # The last interval whose left end has too many open heads.
            low = low + width * (counts[1:] > self.target).sum().clamp(max=_NUM_INTERVALS - 1)
            width = width / _NUM_INTERVALS
        return low + width * (_NUM_INTERVALS / 2)


class ExactBudget(nn.Module):
    """An objective that keeps exactly the given number of heads, without a hyperparameter.

    Instead of a price on open gates, the expected number of open gates is held at a scheduled budget at every step
    (:class:`ExpectedCount`). At the end the heads with the largest ``log_alpha`` stay. If each kind of attention has a
    budget, heads compete within their kind.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates, objective = inject_gates(model), ExactBudget(num_heads=3)
        >>> objective.attach(gates)
        >>> objective.update(gates, 1.0)
        >>> round(gates.expected_open().item(), 3), objective.kept(gates).sum().item()
        (3.0, 3)
    """

    def __init__(
        self,
        *,
        num_heads: int | Mapping[str, int] | None = None,
        keep: float | Mapping[str, float] | None = None,
        min_per_layer: int = 0,
        schedule: BudgetSchedule | None = None,
    ) -> None:
        """Set the budget.

        Args:
            num_heads: Number of heads to keep, or a number for each kind of attention.
            keep: Share of the heads to keep, instead, or a share for each kind; a quarter if neither is given.
            min_per_layer: Least number of heads that every layer keeps when the heads are chosen at the end.
            schedule: Descent of the number of open heads.
        """
        super().__init__()
        self._budget = HeadBudget(num_heads, keep, min_per_layer)
        self._schedule = schedule or BudgetSchedule()

    def check(self, gates: HeadGates) -> None:
        """Raise ``InputError`` if these gates cannot keep the budget."""
        self._budget.parts(gates)

    def attach(self, gates: HeadGates) -> None:
        """Let the gates compete for the budget."""
        parts = [part for part, _ in self._budget.parts(gates)]
        counts = [
            ExpectedCount(
                _initial_count(part),
                temperature=gates.temperature,
                stretch_limits=gates.stretch_limits,
                heads_per_gate=part.heads_per_gate,
            )
            for part in parts
        ]
        gates.constraint = per_part(parts, counts).to(gates.log_alpha.device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the expected number of open heads for this share of the search."""
        gates.forget_draw()
        for (part, budget), count in zip(self._budget.parts(gates), _counts_of(gates), strict=True):
            total = _initial_count(part)
            count.target.fill_(self._schedule.target(progress, total=total, budget=min(budget, total)))

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return zero: the budget is met by construction."""
        return gates.log_alpha.new_zeros(())

    def target(self, gates: HeadGates) -> float:
        """Return the expected number of open heads."""
        return sum(float(count.target) for count in _counts_of(gates))

    def kept(self, gates: HeadGates) -> Tensor:
        """Return the gates with the largest ``log_alpha`` that meet the budget."""
        return self._budget.choose(gates, gates.log_alpha)


def _initial_count(part: BudgetPart) -> float:
    # Sigmoids never sum to all heads. Gates start with a probability of 0.98.
    return 0.98 * part.num_heads


def _counts_of(gates: HeadGates) -> list[ExpectedCount]:
    return [module for module in modules_of(gates.constraint) if isinstance(module, ExpectedCount)]
