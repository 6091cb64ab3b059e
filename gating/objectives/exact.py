"""The exact budget: the expected number of open gates is held at a schedule that ends at the budget."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.objectives.base import KeepsBudget, begin_search, check_search
from gating.objectives.budget import HeadBudget
from gating.objectives.costs import Costs
from gating.objectives.expected_count import ExpectedCount, OpenPrices
from gating.objectives.parts import BudgetPart
from gating.objectives.per_part import UniformRanks, modules_of, per_part
from gating.objectives.schedule import BudgetSchedule, DescentStart

__all__ = ["ExactBudget"]

# Expected share of open gates while the descent waits: so near to 1 that no gate is drawn below 1, which would disturb
# the training of the weights, and none moves. Sigmoids never sum to all heads.
_ALL_OPEN = 1 - 1e-6
# Sharpness from the end of the descent on: gates are open or closed, and weights are trained without their noise.
_DECIDED = 1000.0


class ExactBudget(KeepsBudget):
    """An objective that keeps exactly the given number of heads or neurons, without a hyperparameter.

    Instead of a price on open gates, the expected number of open gates is held at a scheduled budget at every step
    (:class:`~gating.objectives.expected_count.ExpectedCount`). At the end the heads with the largest ``log_alpha``
    stay. If each kind of attention has a budget, heads compete within their kind. Heads and neurons with a number each
    compete among themselves; for a share of the cost of both they compete with each other, and the kept gates leave no
    room for another one (:func:`~gating.objectives.knapsack.fill_budget`). If open blocks have a price, as in measured
    latency, the choice is which blocks stay open, too (:func:`~gating.objectives.open_prices.fill_open_groups`).

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
            cost: Cost for which heads and neurons compete: ``macs``, ``parameters``, ``cache``, or a cost of each
                multiply-accumulate and of open blocks, as in :func:`~gating.objectives.costs.gate_costs`. With gates on
                heads alone, ``cache`` and costs of one's own make ``keep`` a share of cost.
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
            if count.prices is not None and sharpness == _DECIDED and not count.decided.any():
                # The choice knows whole blocks, which locations alone do not. It is made once, and in checkpoints.
                chosen = part.choose_own(gates.log_alpha.detach(), budget)
                kept = torch.zeros_like(count.decided).index_fill(0, chosen, 1)
                count.decided.copy_(_DECIDED * (2 * kept - 1))

    def kept(self, gates: HeadGates) -> Tensor:
        """Return the gates with the largest ``log_alpha`` that meet the budget, or those that were decided."""
        counts = _counts_of(gates) if gates.constraint is not None and gates.objective is self else []
        if len(counts) == 1 and counts[0].prices is not None and counts[0].decided.any():
            return counts[0].decided > 0
        return super().kept(gates)

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
    scale, weights, prices = _scale(part), part.weights, None
    if part.costs is not None and any(part.costs.of_block):
        weights = tuple(cost / part.costs.total for cost in part.costs.of_gate)
        shares = [scale * price / part.costs.total for price in part.costs.of_block]
        prices = OpenPrices(shares, weights, part.costs.block_sizes)
    count = ExpectedCount(
        _initial_count(part) * scale,
        temperature=gates.temperature,
        stretch_limits=gates.stretch_limits,
        weights=[weight * scale for weight in weights],
        prices=prices,
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
