"""The search for heads and neurons: the steps of a training with gates, for any program that drives it."""

import itertools
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.hard_concrete import are_numbers
from gating.objectives.base import KeepsBudget, Objective
from gating.objectives.gate_metrics import gate_metrics, quantity_of, share_undecided
from gating.objectives.parts import COST

# Share of the search before which convergence does not end it: gates rest at first, because none is closing yet.
_EARLIEST_END = 0.67
# Rounding of shares that a loop computes.
_ROUNDING = 1e-6


class Convergence:
    """A test whether gates have converged: the same ones are kept at several checks, and few are undecided.

    Before its budget is reached, a search has more open heads than it will keep, and has not converged.
    """

    def __init__(self, *, patience: int = 5, max_undecided: float = 0.05) -> None:
        """Set the criterion.

        Args:
            patience: Number of consecutive checks, after the first, at which the same heads must be kept.
            max_undecided: Largest share of gates that may be neither open nor closed, ``0.05 < z < 0.95``.

        Raises:
            InputError: ``patience`` is below 1, or ``max_undecided`` is not between 0 and 1.
        """
        if not (are_numbers(patience, max_undecided) and patience >= 1 and 0 <= max_undecided <= 1):
            raise InputError(
                f"Give patience of 1 or more, got {patience!r}, and max_undecided of 0 to 1, got {max_undecided!r}."
            )
        self._patience = patience
        self._max_undecided = max_undecided
        self.begin()

    def begin(self) -> None:
        """Forget all checks, as at the start of a search."""
        self._kept: list[bool] = []
        self._num_unchanged = 0

    @torch.no_grad()
    def update(self, gates: HeadGates, kept: Tensor | None = None) -> str | None:
        """Check the gates once.

        This synchronizes with the device: call it every few steps. Processes with the same gates get the same
        result.

        Args:
            gates: The gates in training.
            kept: Gates that stay if the search ends now, ``[num_gates]``, from an objective's ``kept``; the open ones
                if left out.

        Returns:
            The reason to end the search, as a sentence for the log; None to continue.
        """
        values = gates.values()
        is_open = values > 0
        now = (is_open if kept is None else kept).tolist()
        self._num_unchanged = self._num_unchanged + 1 if now == self._kept else 0
        self._kept = now
        undecided = float(share_undecided(gates))
        num_others = sum(one != other for one, other in zip(is_open.tolist(), now, strict=True))
        # A budget of cost holds whole gates: the rest of it may leave another gate open.
        allowed = max(1, len(now) // 100) if quantity_of(gates, gates.objective) == COST else 0
        if self._num_unchanged < self._patience or undecided > self._max_undecided or num_others > allowed:
            return None
        checks = f"{self._num_unchanged} check{'s' * (self._num_unchanged > 1)}"
        kept_units = " and ".join(f"{sum(itertools.compress(gates.counts[unit], now))} {unit}" for unit in gates.units)
        return (
            f"the choice of {kept_units} did not change at {checks} in a row, and {undecided:.0%} of the gates are "
            "undecided"
        )

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return {"kept": list(self._kept), "num_unchanged": self._num_unchanged}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore the state of a checkpoint."""
        kept, num_unchanged = state["kept"], state["num_unchanged"]
        assert isinstance(kept, list)
        assert isinstance(num_unchanged, int)
        self._kept, self._num_unchanged = list(kept), num_unchanged


class Search:
    """A training of weights and gates together, in which an objective closes gates.

    A loop calls :meth:`update` before each batch and :meth:`add_penalty` on its loss, and takes steps with an optimizer
    of its own. ``GatedTrainer`` does the same; the Lightning module of a run calls the two parts, :meth:`penalty` and
    :meth:`observe`.

    Attributes:
        gates: The gates of the model.
        objective: The objective, attached to the gates.
        convergence: Criterion that ends the search early; None without one.
        reason: Reason why the search has ended, as a sentence for the log; None while it continues.

    Example:
        >>> from gating import ExactBudget, inject_gates, parameter_groups
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10)
        >>> model = BertForSequenceClassification(config)
        >>> gates = inject_gates(model)
        >>> search = Search(gates, ExactBudget(num_heads=3))
        >>> groups = parameter_groups(model, lr=1e-3, gates=gates, objective=search.objective)
        >>> optimizer = torch.optim.AdamW(groups)
        >>> for step in range(20):
        ...     search.update(step / 20)
        ...     loss = model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([1])).loss
        ...     search.add_penalty(loss).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> search.kept().sum().item()
        3
    """

    def __init__(self, gates: HeadGates, objective: Objective, *, convergence: Convergence | None = None) -> None:
        """Begin a search.

        Args:
            gates: The gates of the model, from :func:`gating.inject_gates`.
            objective: Objective that closes gates; attached to them here.
            convergence: Criterion that ends the search early, if :meth:`check_end` is called.

        Raises:
            InputError: The objective does not fit the gates.
        """
        self.gates, self.objective, self.convergence = gates, objective, convergence
        self.begin()

    @torch.inference_mode(mode=False)  # Multipliers could not be trained.
    def begin(self) -> None:
        """Attach the objective and forget all checks; a search that was under way begins anew, its locations stay.

        Raises:
            InputError: The objective does not fit the gates.
        """
        # A subclass of a user need not call that of the base in its attach, so the gates follow it here, too.
        self.gates.follow(self.objective)
        try:
            self.objective.attach(self.gates)
        except BaseException:
            self.gates.follow(None)
            raise
        if self.convergence is not None:
            self.convergence.begin()
        self.reason: str | None = None
        self._checked_step = -1
        # It is None until the batch after an update has one.
        self._last_penalty: Tensor | None = None

    def update(self, progress: float) -> None:
        """Follow the objective's schedule before a batch.

        Args:
            progress: Share of the search that is done, 0 to 1.

        Raises:
            InputError: ``progress`` is no such share; a number of steps would close all gates at once.
        """
        if not (are_numbers(progress) and -_ROUNDING <= progress <= 1 + _ROUNDING):
            raise InputError(f"progress={progress!r} is no share of the search: give step / num_steps, 0 to 1.")
        self._last_penalty = None
        self.objective.update(self.gates, min(max(progress, 0.0), 1.0))

    def penalty(self) -> Tensor:
        """Return the term to add to the loss of the task, a scalar."""
        penalty = self.objective.penalty(self.gates)
        self._last_penalty = penalty.detach()
        return penalty

    def observe(self, loss: Tensor) -> None:
        """Add the loss of a batch, a scalar, which the schedule of some objectives follows."""
        self.objective.observe(loss.detach())

    def add_penalty(self, loss: Tensor, *, num_parts: int = 1) -> Tensor:
        """Observe the loss of a batch, and return it plus the penalty on open gates, a scalar.

        Args:
            loss: Loss of the task, a scalar.
            num_parts: Number of batches whose losses are added up in an optimizer step; 1 if they are averaged.
        """
        penalty = self.penalty()
        self.observe(loss.detach() * num_parts)
        return loss + penalty / num_parts

    def metrics(self, *, kept: Tensor | None = None) -> dict[str, float]:
        """Return the state of the gates, and the penalty since the last update, by their names in logs.

        Args:
            kept: Boolean mask of the gates to count as open, ``[num_gates]``; by default those that are open now.
        """
        with nullcontext() if kept is None else self.gates.fixed_at(kept.float()):
            metrics = {name: float(value) for name, value in gate_metrics(self.gates, self.objective).items()}
        return metrics if self._last_penalty is None else {**metrics, "gates/penalty": float(self._last_penalty)}

    def check_end(self, step: int, num_steps: int, *, is_due: bool = True) -> str | None:
        """Return the reason to end the search after a step, as a sentence for the log; None to continue.

        Args:
            step: Number of optimizer steps so far.
            num_steps: Number of optimizer steps of the whole search.
            is_due: Whether to check the gates for convergence, which synchronizes with the device; trainers do so at
                logged steps. A step is checked once.
        """
        if step >= num_steps:
            self.reason = "all its steps were taken"
        elif self.convergence is not None and is_due and step >= _EARLIEST_END * num_steps:
            # An unchanged choice is no end where the values of open gates are learned after it.
            if step != self._checked_step and not self.objective.learns_values:
                self.reason = self.convergence.update(self.gates, self.objective.kept(self.gates))
            self._checked_step = step
        return self.reason

    @torch.no_grad()
    def kept(self) -> Tensor | None:
        """Take the objective to the end of its schedule, and return the gates that stay.

        Returns:
            A boolean tensor ``[num_gates]``; None: the open ones.
        """
        self.update(1.0)
        return self.objective.kept(self.gates)

    def state_dict(self, *, modules: bool = True) -> dict[str, Any]:
        """Return the state for a checkpoint.

        Args:
            modules: Whether with the state of gates and objective; trainers that save modules by themselves have it.
        """
        state = {
            "convergence": None if self.convergence is None else self.convergence.state_dict(),
            "reason": self.reason,
            "checked_step": self._checked_step,
            "measured": getattr(self.objective, "measured", None),
        }
        return {**state, **{name: part.state_dict() for name, part in self._modules().items() if modules}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint of this search, also its budget if that was measured again."""
        objective, measured = self.objective, state.get("measured")
        if isinstance(objective, KeepsBudget) and objective.measured and measured not in (None, objective.measured):
            objective.take_measured(measured)
            self.begin()
        for name, part in self._modules().items():
            if name in state:
                part.load_state_dict(state[name])
        if self.convergence is not None and state["convergence"] is not None:
            self.convergence.load_state_dict(state["convergence"])
        self.reason, self._checked_step = state["reason"], state["checked_step"]
        self.gates.renew_values()

    def _modules(self) -> dict[str, Any]:
        """Return the parts of the search that have tensors."""
        return {"gates": self.gates, "objective": self.objective}
