"""Callbacks of the two phases of a trainer: the end of the search, and the evaluation before the recovery."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, SaveStrategy

from gating.objectives.search import Search

__all__ = ["RemovedFirst", "TrainerSearchEnd", "ended_by_score", "without_early_stopping"]


class TrainerSearchEnd(TrainerCallback):
    """Callback that ends the training at the end of the search, with a last log, evaluation and checkpoint.

    Attributes:
        num_steps: Optimizer steps of the search; 0 before the training has begun.
    """

    def __init__(self, search: Search, *, recovery: float) -> None:
        """Args: ``search`` is the search to end, ``recovery`` the share of the training's steps after it."""
        self._search, self._recovery, self.num_steps = search, recovery, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the length of the search; one that was stopped, or ran out of memory, begins anew unless resumed."""
        if self.num_steps and not state.global_step:
            self._search.begin()
        self.num_steps = max(1, round((1 - self._recovery) * state.max_steps))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear the gradients of the multipliers: the trainer clears those of the model alone."""
        for multiplier in self._search.objective.parameters():
            multiplier.grad = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the training after the last step of the search, or at a logged step if the gates have converged."""
        if self._search.check_end(state.global_step, self.num_steps, is_due=control.should_log) is not None:
            self.num_steps = state.global_step
            control.should_training_stop = control.should_log = True
            # With strategies by epoch, the end of a training is the end of an epoch, with its own.
            control.should_evaluate = control.should_evaluate or args.eval_strategy == IntervalStrategy.STEPS
            control.should_save = control.should_save or args.save_strategy == SaveStrategy.STEPS


class RemovedFirst(TrainerCallback):
    """Callback that evaluates the removed model before the recovery, and saves it as the best one so far."""

    def __init__(self, trainer: Any) -> None:
        """Args: ``trainer`` begins a recovery with ``load_best_model_at_end``."""
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write ``checkpoint-0``, unless the recovery is resumed."""
        if state.best_metric is None:
            self._trainer._determine_best_metric(self._trainer._evaluate(None, None, skip_scheduler=True), trial=None)
            state.best_model_checkpoint = str(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-0")
            self._trainer._save_checkpoint(self._trainer.model, trial=None)


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


def ended_by_score(trainer: Trainer) -> bool:
    """Return whether a training has ended because the score of early stopping no longer improved."""
    callbacks = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
    return any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in callbacks)
