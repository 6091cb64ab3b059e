"""The search for heads and neurons as a phase of transformers' Trainer: its length, its end, and its metrics."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives import FollowsLoss, Objective
from gating.objectives.base import attach_objective
from gating.objectives.convergence import Convergence
from gating.report.gate_metrics import gate_metrics

__all__ = ["Search", "SearchEnd", "ended_by_score", "without_early_stopping"]

# Share of the search before which it does not end by convergence: gates rest at first, because none is closing yet.
_EARLIEST_END = 0.67

# Parts of the state, as they are called in messages.
_OTHER = {"gates": "other gates", "objective": "an objective of other numbers", "convergence": "another criterion"}


class Search:
    """The search of a training: gates, objective, and the number of steps.

    Attributes:
        gates: The gates of the model.
        objective: The objective, attached to the gates.
        convergence: Criterion that ends the search early; None without one.
        recovery: Share of the training's steps after the search.
        steps: Optimizer steps of the search; 0 before the training has begun.
        is_complete: Whether all its steps were taken, or the gates have converged.
    """

    def __init__(
        self, gates: HeadGates, objective: Objective, *, convergence: Convergence | None, recovery: float
    ) -> None:
        """Attach the objective to the gates.

        Raises:
            InputError: The objective does not fit the gates.
        """
        self.gates = gates
        self.objective = objective
        self.convergence = convergence
        self.recovery = recovery
        self._attach()
        self._parts: dict[str, Any] = {"gates": gates, "objective": objective, "convergence": convergence}

    def _attach(self) -> None:
        """Attach the objective anew, and forget all checks."""
        attach_objective(self.objective, self.gates)
        if self.convergence is not None:
            self.convergence.begin()
        self.steps = 0
        self.is_complete = False
        self._penalty: Tensor | None = None

    def begin(self, total_steps: int, *, first_step: int) -> None:
        """Set the number of steps from that of the whole training, search and recovery together.

        Args:
            total_steps: Optimizer steps of the training.
            first_step: Steps that were taken before, in a training that is resumed. Without any, a search that has
                begun already begins anew: after it was stopped, or ran out of memory with a batch size that was tried.
        """
        if self.steps and not first_step:
            self._attach()
        self.steps = max(1, round((1 - self.recovery) * total_steps))

    def update(self, step: int) -> None:
        """Follow the objective's schedule before a training step."""
        self.objective.update(self.gates, step / self.steps)

    def add_penalty(self, loss: Tensor, *, num_parts: int) -> Tensor:
        """Return the loss of a batch plus the penalty on open gates, a scalar.

        Args:
            loss: Loss of the task, a scalar.
            num_parts: Number of batches whose losses are added up in an optimizer step; 1 if they are averaged.
        """
        penalty = self.objective.penalty(self.gates)
        if isinstance(self.objective, FollowsLoss):
            self.objective.observe(loss.detach() * num_parts)
        self._penalty = penalty.detach()
        return loss + penalty / num_parts

    def metrics(self) -> dict[str, float]:
        """Return the state of the gates and the last penalty by the names in the logs."""
        metrics = {name: float(value) for name, value in gate_metrics(self.gates, self.objective).items()}
        return metrics if self._penalty is None else {**metrics, "gates/penalty": float(self._penalty)}

    def check_end(self, step: int, *, is_logged: bool) -> None:
        """Complete the search after its last step, or at a logged step if the gates have converged."""
        if step >= self.steps:
            self.is_complete = True
        elif self.convergence is not None and is_logged and step >= _EARLIEST_END * self.steps:
            self.is_complete = self.convergence.update(self.gates, self.objective.kept(self.gates)) is not None
        if self.is_complete:
            self.steps = step

    @torch.no_grad()
    def kept(self) -> Tensor | None:
        """Return the gates that stay, a boolean tensor ``[num_gates]``; None for the open ones."""
        self.objective.update(self.gates, 1.0)
        return self.objective.kept(self.gates)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of gates, objective and criterion for a checkpoint."""
        return {name: part.state_dict() for name, part in self._parts.items() if hasattr(part, "state_dict")}

    def check_state(self, state: Mapping[str, Any], *, checkpoint: str) -> None:
        """Check that a state of a checkpoint is one of this search; change nothing.

        Args:
            state: State from :meth:`state_dict`; empty after the removal.
            checkpoint: Folder of the checkpoint, for messages.

        Raises:
            InputError: The checkpoint has another objective or other gates.
        """
        for name, values in state.items():
            part = self._parts[name]
            own = {} if part is None else part.state_dict()
            if {key: _shape(one) for key, one in values.items()} != {key: _shape(one) for key, one in own.items()}:
                raise InputError(
                    f"{checkpoint} was written with {_OTHER[name]} than those of this trainer. Make it as before: the "
                    "same model, objective and gate_options."
                )

    def load_state_dict(self, state: Mapping[str, Any], *, steps: int, is_complete: bool) -> None:
        """Restore the state of a checkpoint.

        Args:
            state: State from :meth:`state_dict`.
            steps: Optimizer steps of the search.
            is_complete: Whether the search is complete.
        """
        for name, values in state.items():
            module = self._parts[name]
            if module is not None:
                module.load_state_dict(values)
        self.gates.forget_draw()
        self.steps, self.is_complete = steps, is_complete


def _shape(value: object) -> object:
    return value.shape if isinstance(value, Tensor) else None


@contextmanager
def without_early_stopping(trainer: Trainer) -> Iterator[None]:
    """Take callbacks that stop at a score that no longer improves out of a trainer inside of a ``with`` block.

    In a search the score falls, because heads are closed.
    """
    callbacks = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
    for callback in callbacks:
        trainer.remove_callback(callback)
    try:
        yield
    finally:
        for callback in callbacks:
            trainer.add_callback(callback)
        # Checkpoints have the state of each callback that the trainer's state names.
        stateful: list[Any] = [one for one in trainer.callback_handler.callbacks if isinstance(one, ExportableState)]
        state: Any = trainer.state
        state.stateful_callbacks = (
            TrainerState(stateful_callbacks=stateful).stateful_callbacks | state.stateful_callbacks
        )


def ended_by_score(trainer: Trainer) -> bool:
    """Return whether a training has ended because the score of early stopping no longer improved."""
    callbacks = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
    return any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in callbacks)


class SearchEnd(TrainerCallback):
    """Callback that ends the training at the end of the search, with a last log, evaluation and checkpoint."""

    def __init__(self, search: Search) -> None:
        """Args: ``search`` is the search to end."""
        self._search = search

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the length of the search."""
        self._search.begin(state.max_steps, first_step=state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear the gradients of the multipliers: the trainer clears those of the model alone."""
        for multiplier in self._search.objective.parameters():
            multiplier.grad = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the training after the last step of the search."""
        self._search.check_end(state.global_step, is_logged=control.should_log)
        if self._search.is_complete:
            control.should_training_stop = control.should_log = True
            # With strategies by epoch, the end of a training is the end of an epoch, with its own.
            control.should_evaluate = control.should_evaluate or args.eval_strategy == IntervalStrategy.STEPS
            control.should_save = control.should_save or args.save_strategy == SaveStrategy.STEPS
