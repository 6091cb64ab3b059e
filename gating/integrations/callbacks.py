"""Callbacks of a trainer with gates: the steps and the end of its search, and the start of its recovery."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, SaveStrategy

from gating.objectives.search import Search

__all__ = ["RemovedFirst", "TrainerSearchEnd"]


class TrainerSearchEnd(TrainerCallback):
    """Callback that ends the training at the end of the search, with a last log, evaluation and checkpoint.

    Attributes:
        num_steps: Optimizer steps of the search; 0 before the training has begun.
    """

    def __init__(self, search: Search, *, recovery: float) -> None:
        """Args: ``search`` is the search to end, ``recovery`` the share of the training's steps after it."""
        self._search, self._recovery, self.num_steps = search, recovery, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the length of the search; one that was stopped, or ran out of memory, begins anew unless resumed."""
        if self.num_steps and not state.global_step:
            self._search.begin()
        self.num_steps = max(1, round((1 - self._recovery) * state.max_steps))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the rates of gates and multipliers, and clear the gradients of these, which the trainer does not."""
        for group in kwargs["optimizer"].param_groups:
            if group.get("name") in ("gates", "multipliers"):
                group["lr"] = group.setdefault("initial_lr", group["lr"])
                for parameter in group["params"]:
                    parameter.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write ``checkpoint-0``, unless the recovery is resumed."""
        if state.best_metric is None:
            self._trainer._determine_best_metric(self._trainer._evaluate(None, None, skip_scheduler=True), trial=None)
            state.best_model_checkpoint = str(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-0")
            self._trainer._save_checkpoint(self._trainer.model, trial=None)
