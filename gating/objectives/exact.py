"""Exactly as many heads as asked for: a budget on the expected number of open gates, met at every step."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gating.gates import HeadGates, hard_concrete
from gating.objectives.budget import HeadBudget
from gating.objectives.per_part import BudgetPart, modules_of, per_part
from gating.objectives.schedule import BudgetSchedule

__all__ = ["ExactBudget", "ExpectedCount"]

_POINTS = 100


class ExpectedCount(nn.Module):
    """Shift all ``log_alpha`` by one number so that the expected count of open gates equals a target.

    With ``p_i(c) = sigmoid(log_alpha_i - c - beta log(-gamma / zeta))`` and ``h_i`` the number of heads of a gate, the
    offset ``c`` solves ``sum_i h_i p_i(c) = target``. It is the Lagrange multiplier of the budget, solved for instead
    of learned: heads compete, since one gate can open only as others close.
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
        """Args: ``target`` is the expected number of open heads, the others are those of the gates."""
        super().__init__()
        self.register_buffer("heads_per_gate", torch.tensor(heads_per_gate, dtype=torch.float32), persistent=False)
        self.register_buffer("target", torch.tensor(float(target)))
        self.temperature = temperature
        self.stretch_limits = stretch_limits

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the shifted locations, ``[num_gates]``, with the gradient of the offset in them."""
        return log_alpha - self.offset(log_alpha)

    def offset(self, log_alpha: Tensor) -> Tensor:
        """Solve for the offset: a search without gradient, then one Newton step that carries it.

        The Newton step's derivative, ``dc / d log_alpha_i = h_i p_i' / sum_j h_j p_j'``, is that of the implicit
        function.
        """
        # P(open) is a sigmoid around a threshold; in single precision also under autocast.
        with torch.autocast(device_type=log_alpha.device.type, enabled=False):
            logits = log_alpha.float() - hard_concrete.open_threshold(self.temperature, self.stretch_limits)
            start = self._search(logits.detach())
            probs = torch.sigmoid(logits - start)
            with torch.no_grad():
                slope = (probs * (1 - probs) * self.heads_per_gate).sum().clamp_min(1e-6)
            return start + ((probs * self.heads_per_gate).sum() - self.target) / slope

    @torch.no_grad()
    def _search(self, logits: Tensor) -> Tensor:
        """Find the offset to within some 1e-4: grids instead of bisection, and no step waits for a value."""
        points = torch.arange(_POINTS + 1, device=logits.device, dtype=logits.dtype)
        smallest, largest = logits.aminmax()
        low, width = smallest - 20.0, (largest - smallest + 40.0) / _POINTS
        for _ in range(3):
            grid = low + width * points
            counts = (torch.sigmoid(logits - grid.unsqueeze(1)) * self.heads_per_gate).sum(dim=1)
            # The interval whose left end still has too many open, be it none or all of them.
            low = low + width * (counts[1:] > self.target).sum().clamp(max=_POINTS - 1)
            width = width / _POINTS
        return low + width * (_POINTS / 2)


class ExactBudget(nn.Module):
    """Keep exactly the number of heads that was asked for; nothing to tune.

    Instead of a price on open gates, the expected number of open gates is held at a scheduled budget at every step
    (:class:`ExpectedCount`). At the end the heads with the largest ``log_alpha`` stay. Where each kind of attention has
    a budget, heads compete with those of their kind.
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
            num_heads: How many heads to keep, or how many of each kind of attention.
            keep: Which share of the heads to keep, instead, likewise; a quarter when neither is given.
            min_per_layer: How many heads every layer keeps at least; it has a say when the heads are chosen.
            schedule: How the number of open heads descends.
        """
        super().__init__()
        self._budget = HeadBudget(num_heads, keep, min_per_layer)
        self._schedule = schedule or BudgetSchedule()

    def check(self, gates: HeadGates) -> None:
        """Raise ``InputError`` if the gates cannot keep the budget."""
        self._budget.parts(gates)

    def attach(self, gates: HeadGates) -> None:
        """Let the gates compete for the budget."""
        parts = [part for part, _ in self._budget.parts(gates)]
        counts = [
            ExpectedCount(
                _highest(part),
                temperature=gates.temperature,
                stretch_limits=gates.stretch_limits,
                heads_per_gate=part.heads_per_gate,
            )
            for part in parts
        ]
        gates.constraint = per_part(parts, counts).to(gates.log_alpha.device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the number of heads that may be open after this share of the search."""
        gates.forget_draw()
        for (part, budget), count in zip(self._budget.parts(gates), _counts_of(gates), strict=True):
            highest = _highest(part)
            count.target.fill_(self._schedule.target(progress, total=highest, budget=min(budget, highest)))

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return zero: the budget is met by construction."""
        return gates.log_alpha.new_zeros(())

    def target(self, gates: HeadGates) -> float:
        """Return how many heads may be open at this moment."""
        return sum(float(count.target) for count in _counts_of(gates))

    def kept(self, gates: HeadGates) -> Tensor:
        """Keep the heads with the largest ``log_alpha``."""
        return self._budget.choose(gates, gates.log_alpha)


def _highest(part: BudgetPart) -> float:
    # Sigmoids never sum to all heads; at .98 of them the gates are as open as they start.
    return 0.98 * part.num_heads


def _counts_of(gates: HeadGates) -> list[ExpectedCount]:
    counts = [module for module in modules_of(gates.constraint) if isinstance(module, ExpectedCount)]
    assert counts, "attach() the objective to the gates first"
    return counts
