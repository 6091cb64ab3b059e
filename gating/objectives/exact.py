"""The exact budget: the expected number of open gates is held at a schedule that ends at the budget."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gating.gates import HeadGates, hard_concrete
from gating.objectives.base import KeepsBudget, begin_search, check_search
from gating.objectives.budget import HeadBudget
from gating.objectives.parts import BudgetPart, Costs
from gating.objectives.per_part import UniformRanks, modules_of, per_part
from gating.objectives.schedule import BudgetSchedule, DescentStart

__all__ = ["ExactBudget", "ExpectedCount", "solve_offset"]

# Intervals of the grids of the search for the offset, and number of grids; coarser ones where gates cost more time than
# operations.
_GRIDS, _GRIDS_OF_MANY = (100, 3), (16, 5)
_MANY_GATES = 2048
# Expected share of open gates while the descent waits: so near to 1 that no gate is drawn below 1, which would disturb
# the training of the weights, and none moves. Sigmoids never sum to all heads.
_ALL_OPEN = 1 - 1e-6
# Sharpness from the end of the descent on: gates are open or closed, and weights are trained without their noise.
_DECIDED = 1000.0


class ExpectedCount(nn.Module):
    """A constraint that shifts all ``log_alpha`` by one offset, so that the expected number of open heads is a target.

    With ``p_i(c) = sigmoid(log_alpha_i - c - beta log(-gamma / zeta))`` and ``w_i`` the weight of a gate, the offset
    ``c`` solves ``sum_i w_i p_i(c) = target``. It is the Lagrange multiplier of the budget, solved for instead of
    learned: gates compete, since one can open only as others close. Weights are numbers of heads, or the neurons or
    the cost of each gate over their mean.

    Attributes:
        target: Expected sum of the weights of open gates, a scalar buffer.
        weights: Weight of each gate, ``[num_gates]``.
        sharpness: Factor of ``log_alpha`` before the shift, a scalar buffer; a large one leaves no gate undecided.

    Example:
        >>> budget = ExpectedCount(1.5, temperature=2 / 3, stretch_limits=(-0.1, 1.1))
        >>> shifted = budget(torch.tensor([-1.0, 0.0, 2.0]))
        >>> round(hard_concrete.prob_open(shifted).sum().item(), 3)
        1.5
    """

    target: Tensor
    weights: Tensor
    sharpness: Tensor

    def __init__(
        self,
        target: float,
        *,
        temperature: float,
        stretch_limits: tuple[float, float],
        weights: Sequence[float] = (1,),
    ) -> None:
        """Set the target.

        Args:
            target: Expected sum of the weights of open gates.
            temperature: ``beta`` of the gates.
            stretch_limits: ``(gamma, zeta)`` of the gates.
            weights: Weight of each gate, or one weight for all.
        """
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.register_buffer("target", torch.tensor(float(target)))
        # A buffer, since a number would be another graph for torch.compile; it follows from the progress.
        self.register_buffer("sharpness", torch.tensor(1.0), persistent=False)
        self.temperature = temperature
        self.stretch_limits = stretch_limits

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the shifted locations, ``[num_gates]``; differentiable, the offset included."""
        # The factor is not in the gradient, whose norm clips that of all weights.
        log_alpha = log_alpha + (log_alpha * (self.sharpness - 1)).detach()
        return log_alpha - self.offset(log_alpha)

    def offset(self, log_alpha: Tensor) -> Tensor:
        """Solve for the offset ``c``, a scalar, by :func:`solve_offset`."""
        # P(open) is a sigmoid around a threshold. Autocast would compute it in half precision.
        with torch.autocast(device_type=log_alpha.device.type, enabled=False):
            logits = log_alpha.float() - hard_concrete.open_threshold(self.temperature, self.stretch_limits)
            return solve_offset(logits, self.weights, self.target)


def solve_offset(logits: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Solve ``sum_i w_i sigmoid(logit_i - c) = target`` for ``c``: a search without gradient, then one Newton step.

    The derivative of the Newton step, ``dc / d logit_i = w_i p_i' / sum_j w_j p_j'``, is that of the implicit function.

    Args:
        logits: Shape ``[num_gates]``, any floating dtype.
        weights: Weight of each gate, ``[num_gates]``, or one weight for all, ``[1]``.
        target: A scalar between zero and the sum of the weights.

    Returns:
        ``c``, a scalar; differentiable with respect to the logits.

    Example:
        >>> round(solve_offset(torch.full((4,), 3.0), torch.ones(1), torch.tensor(2.0)).item(), 3)
        3.0
    """
    start = _search(logits.detach(), weights, target)
    probs = torch.sigmoid(logits - start)
    with torch.no_grad():
        slope = (probs * (1 - probs) * weights).sum().clamp_min(1e-6)
    return start + ((probs * weights).sum() - target) / slope


@torch.no_grad()
def _search(logits: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Return the offset to about 1e-4 for logits within a hundred of each other.

    Each of several grids divides the interval of the one before. Bisection would take more operations, and a test of
    convergence would wait for the device.
    """
    num_intervals, num_rounds = _GRIDS if logits.numel() < _MANY_GATES else _GRIDS_OF_MANY
    points = torch.arange(num_intervals + 1, device=logits.device, dtype=logits.dtype)
    smallest, largest = logits.aminmax()
    low, width = smallest - 20.0, (largest - smallest + 40.0) / num_intervals
    for _ in range(num_rounds):
        grid = low + width * points
        counts = (torch.sigmoid(logits - grid.unsqueeze(1)) * weights).sum(dim=1)
        # The last interval whose left end has too many open gates.
        low = low + width * (counts[1:] > target).sum().clamp(max=num_intervals - 1)
        width = width / num_intervals
    return low + width * (num_intervals / 2)


class ExactBudget(KeepsBudget):
    """An objective that keeps exactly the given number of heads or neurons, without a hyperparameter.

    Instead of a price on open gates, the expected number of open gates is held at a scheduled budget at every step
    (:class:`ExpectedCount`). At the end the heads with the largest ``log_alpha`` stay. If each kind of attention has a
    budget, heads compete within their kind. Heads and neurons with a number each compete among themselves; for a share
    of the cost of both they compete with each other, and the kept gates leave no room for another one
    (:func:`~gating.objectives.knapsack.fill_budget`).

    An objective that observes the losses of training follows them, unless the schedule has a fixed start. All gates
    rest at 1 until the loss has fallen (:class:`~gating.objectives.schedule.DescentStart`): heads that close while a
    model still guesses are chosen by noise, and the noise of gates delays the model. At the end of such a descent each
    gate is decided, 1 or 0, and weights are trained without noise again.

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
        num_neurons: int | Mapping[str, int] | None = None,
        keep: float | Mapping[str, float] | None = None,
        cost: Costs = "macs",
        min_per_layer: int = 0,
        uniform: bool = False,
        schedule: BudgetSchedule | None = None,
    ) -> None:
        """Set the budget.

        Args:
            num_heads: Number of heads to keep, or a number for each kind of attention.
            num_neurons: Number of neurons to keep.
            keep: Share to keep, instead of numbers, or a share for each kind; a quarter if neither is given. With gates
                on heads and neurons, one share of the cost of both.
            cost: Cost for which heads and neurons compete: ``macs``, ``parameters``, or a cost of each
                multiply-accumulate, ``{"heads": ..., "neurons": ...}``.
            min_per_layer: Least number of heads that every layer keeps when the heads are chosen at the end.
            uniform: Whether all layers keep equally many, for each kind of attention and for neurons.
            schedule: Descent of the number of open heads or neurons, or of the share of cost.
        """
        super().__init__(HeadBudget(num_heads, keep, min_per_layer, num_neurons, cost, uniform), schedule)
        self._start = DescentStart() if self._schedule.start is None else None

    def attach(self, gates: HeadGates) -> None:
        """Let the gates compete for the budget, in a search that begins."""
        parts = [part for part, _ in self._budget.parts(gates)]
        constraints = [_constraint(gates, part) for part in parts]
        begin_search(self, gates)
        if self._start is not None:
            self._start.begin()
            if not gates.log_alpha.is_meta:
                self._start.to(gates.log_alpha.device)
        gates.constraint = per_part(parts, constraints).to(gates.log_alpha.device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the expected number of open heads or neurons, or the share of cost, for this share of the search."""
        check_search(self, gates)
        gates.renew_values()
        start = None if self._start is None else self._start.update(self._schedule, progress)
        waits = self._start is not None and start is None
        sharpness = self._sharpness(progress)
        for (part, budget), count in zip(self._budget.parts(gates), _counts_of(gates), strict=True):
            total = _initial_count(part)
            number = self._schedule.target(progress, total=total, budget=min(budget, total), start=start)
            count.target.fill_((_ALL_OPEN * part.total if waits else number) * _scale(part))
            count.sharpness.fill_(sharpness)

    def _sharpness(self, progress: float) -> float:
        """Return the factor of the locations at this share of the search."""
        decides = self._start is not None and self._start.followed_loss(self._schedule)
        return _DECIDED if decides and progress >= self._schedule.end else 1.0

    def observe(self, loss: Tensor) -> None:
        """Add the loss of a training batch, a scalar, which the start of the descent follows."""
        if self._start is not None:
            self._start.observe(loss)

    def target(self, gates: HeadGates) -> float:
        """Return the expected number of open heads or neurons; with gates on both, the expected share of cost."""
        parts = [part for part, _ in self._budget.parts(gates)]
        counts = [float(count.target) / _scale(part) for part, count in zip(parts, _counts_of(gates), strict=True)]
        return self._budget.amount(gates, counts)


def _constraint(gates: HeadGates, part: BudgetPart) -> nn.Module:
    """Return the constraint of one part."""
    scale = _scale(part)
    count = ExpectedCount(
        _initial_count(part) * scale,
        temperature=gates.temperature,
        stretch_limits=gates.stretch_limits,
        weights=[weight * scale for weight in part.weights],
    )
    return nn.Sequential(UniformRanks(part), count) if part.uniform else count


def _initial_count(part: BudgetPart) -> float:
    # Sigmoids never sum to all heads. Gates start with a probability of 0.98.
    return 0.98 * part.total


def _scale(part: BudgetPart) -> float:
    """Return the factor with which the weights of units that are weighed are 1 in the mean, as those of heads are."""
    return len(part.weights) / part.total if part.is_weighed else 1


def _counts_of(gates: HeadGates) -> list[ExpectedCount]:
    own = [inner for module in modules_of(gates.constraint) for inner in module.modules()]
    return [module for module in own if isinstance(module, ExpectedCount)]
