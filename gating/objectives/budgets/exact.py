"""The exact budget: the expected number of open gates is held at a schedule that ends at the budget."""

from torch import Tensor, nn

from gating.gates import HeadGates
from gating.objectives.base import KeepsBudget
from gating.objectives.expected_count import EqualLayers, ExpectedCount
from gating.objectives.parts import Part
from gating.objectives.schedule import DescentStart

__all__ = ["ExactBudget"]

# Expected share of open gates while the descent waits: so near to 1 that no gate is drawn below 1, which would disturb
# the training of the weights, and none moves. Sigmoids never sum to all heads.
_ALL_OPEN = 1 - 1e-6
# Expected share of open gates as the descent begins. Gates start with a probability of 0.98.
_INITIAL = 0.98
# Sharpness from the end of the descent on: gates are open or closed, and weights are trained without their noise.
_DECIDED = 1000.0


class ExactBudget(KeepsBudget):
    """An objective that keeps exactly the given number of heads or neurons, without a hyperparameter.

    Instead of a price on open gates, the expected number of open gates is held at a scheduled budget at every step
    (:class:`~gating.objectives.expected_count.ExpectedCount`). At the end the heads with the largest ``log_alpha``
    stay. If each kind of attention has a budget, heads compete within their kind. Heads and neurons with a number each
    compete among themselves; for a share of the cost of both they compete with each other, and the kept gates leave no
    room for another one (:meth:`Part.choose <gating.objectives.parts.Part.choose>`).

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

    def attach(self, gates: HeadGates) -> None:
        """Let the gates compete for the budget, in a search that begins."""
        super().attach(gates)
        device = gates.log_alpha.device
        if self._follows_loss:
            self._start = DescentStart()
            if not gates.log_alpha.is_meta:
                self._start.to(device)
        count = _expected_count(gates, self._parts)
        constraint = nn.Sequential(EqualLayers(self._parts), count) if self._budget.uniform else count
        gates.constraint = constraint.to(device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the expected number of open heads or neurons, or the share of cost, for this share of the search."""
        super().update(gates, progress)
        gates.renew_values()
        start = None if self._start is None else self._start.update(self._schedule, progress)
        waits = self._start is not None and start is None
        limits = [part.total for part in self._parts] if waits else self._limits(progress, total=_INITIAL, start=start)
        count = _count_of(gates)
        for place, (part, limit) in enumerate(zip(self._parts, limits, strict=True)):
            count.target[place] = min(limit, _ALL_OPEN * part.total) * _scale(part)
        count.sharpness.fill_(self._sharpness(progress))

    def observe(self, loss: Tensor) -> None:
        """Add the loss of a training batch, a scalar, which the start of the descent follows."""
        if self._start is not None:
            self._start.observe(loss)

    def target(self, gates: HeadGates) -> float:
        """Return the expected number of open heads or neurons; with gates on both, the expected share of cost."""
        self.check_search(gates)
        targets = _count_of(gates).target.tolist()
        return self._amount([float(one) / _scale(part) for part, one in zip(self._parts, targets, strict=True)])

    @property
    def _follows_loss(self) -> bool:
        return self._schedule.start is None

    def _sharpness(self, progress: float) -> float:
        """Return the factor of the locations at this share of the search."""
        decides = self._start is not None and self._start.followed_loss(self._schedule)
        return _DECIDED if decides and progress >= self._schedule.end else 1.0


def _expected_count(gates: HeadGates, parts: list[Part]) -> ExpectedCount:
    weights, numbers = [0.0] * gates.log_alpha.numel(), [0] * gates.log_alpha.numel()
    for number, part in enumerate(parts):
        for gate, size in zip(part.gates, part.sizes, strict=True):
            weights[gate], numbers[gate] = size * _scale(part), number
    return ExpectedCount(
        [_INITIAL * part.total * _scale(part) for part in parts],
        temperature=gates.temperature,
        stretch_limits=gates.stretch_limits,
        weights=weights,
        part_of_gate=numbers,
    )


def _scale(part: Part) -> float:
    """Return the factor with which the weights of units that are weighed are 1 in the mean, as those of heads are."""
    return len(part.sizes) / part.total if part.is_weighed else 1


def _count_of(gates: HeadGates) -> ExpectedCount:
    assert gates.constraint is not None
    return next(module for module in gates.constraint.modules() if isinstance(module, ExpectedCount))
