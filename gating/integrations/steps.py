"""The search in transformers' Trainer: optimizer groups, learning rates, loss, logs and its end."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from gating.errors import InputError
from gating.integrations.teaching import is_added_up, taught_loss
from gating.objectives.parameter_groups import gate_groups
from gating.objectives.search import Search
from gating.teachers.teacher import Teacher

__all__ = ["GatedSteps", "TrainerSearchEnd", "ended_by_score", "shorten_printed_logs", "without_early_stopping"]

# Names in the log of the numbers of one layer.
_OF_LAYER = re.compile(r"gates/\w+_\d+/")
# Groups of an optimizer whose rates stay.
_CONSTANT = {"gates", "multipliers"}
# The class may be any that is made from transformers' Trainer.
_Base: Any = object


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

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clear the gradients of the multipliers: the trainer clears those of the model alone."""
        for multiplier in self._search.objective.parameters():
            multiplier.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the training after the last step of the search, or at a logged step if the gates have converged."""
        if self._search.check_end(state.global_step, self.num_steps, is_due=control.should_log) is not None:
            self.num_steps = state.global_step
            control.should_training_stop = control.should_log = True
            # With strategies by epoch, the end of a training is the end of an epoch, with its own.
            control.should_evaluate = control.should_evaluate or args.eval_strategy == IntervalStrategy.STEPS
            control.should_save = control.should_save or args.save_strategy == SaveStrategy.STEPS


class GatedSteps(_Base):  # type: ignore[misc]
    """Methods of a trainer that train gates beside the weights, as long as it has a search.

    Attributes:
        search: The search; None after the removal.
        teacher: Dense model to learn from; None to learn from the labels alone.
    """

    search: Search | None = None
    teacher: Teacher | None = None
    # This callback ends it.
    _search_end: TrainerSearchEnd
    # Attributes of transformers' Trainer.
    args: Any
    model: Any
    model_init: Any
    callback_handler: Any
    optimizer: Any
    optimizer_cls_and_kwargs: Any
    lr_scheduler: Any
    # Rates of gates and multipliers, as in `gating.parameter_groups`.
    _rates: Mapping[str, Any]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer, with groups of their own for gates and multipliers.

        A callback could not add them in ``on_train_begin``: the scheduler exists by then, with one rate for each group
        that the optimizer had, and fails at its first step.
        """
        if self.search is None:
            return super().create_optimizer(*args, **kwargs)
        gates = self.search.gates
        # Otherwise the gates would be among the weights, with their rate and decay.
        gates.requires_grad_(False)
        try:
            super().create_optimizer(*args, **kwargs)
        finally:
            gates.requires_grad_(True)
        _add_gate_groups(self.optimizer, self.search, self._rates)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the scheduler; gates and multipliers keep their rates."""
        is_new = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if is_new and self.search is not None:
            _keep_gate_rates(scheduler, optimizer or self.optimizer)
        return scheduler

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Follow the objective's schedule, and train on a batch; return its loss, a scalar."""
        if self.search is not None:
            self.search.update(self.state.global_step / self._search_end.num_steps)
        return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, a scalar; in training, with that of a teacher and the penalty on open gates."""
        if self.teacher is None or not model.training:
            result = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        else:
            result = taught_loss(self, super().compute_loss, model, inputs, num_items_in_batch=num_items_in_batch)
            result = result if return_outputs else result[0]
        if self.search is None or not model.training:
            return result
        loss, *outputs = result if return_outputs else (result,)
        num_parts = self.current_gradient_accumulation_steps if is_added_up(self, num_items_in_batch) else 1
        loss = self.search.add_penalty(loss, num_parts=num_parts)
        return (loss, *outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log numbers of the training; in the search, also the state of the gates."""
        if self.search is not None and "loss" in logs:
            logs = {**logs, **self.search.metrics()}
        super().log(logs, *args, **kwargs)


def _add_gate_groups(optimizer: torch.optim.Optimizer, search: Search, rates: Mapping[str, Any]) -> None:
    """Add a group of the gates and, if the objective has multipliers, one of these to an optimizer, in place.

    Raises:
        InputError: Multipliers ascend, and the optimizer cannot.
    """
    groups = gate_groups(search.gates, search.objective, **rates)
    if len(groups) > 1 and "maximize" not in optimizer.defaults:
        raise InputError(
            f"{type(search.objective).__name__} trains multipliers by gradient ascent, and {type(optimizer).__name__} "
            "has no option maximize: choose an optimizer of torch, such as args.optim='adamw_torch'."
        )
    if any(group.get("name") in _CONSTANT for group in optimizer.param_groups):
        return  # Made by gating.parameter_groups.
    for group in groups:
        optimizer.add_param_group(group)


def _keep_gate_rates(scheduler: LRScheduler, optimizer: torch.optim.Optimizer) -> None:
    """Keep gates and multipliers at their learning rate in a new scheduler, in place.

    Raises:
        InputError: The scheduler has no rates of each group.
    """
    groups = optimizer.param_groups
    constant = [index for index, group in enumerate(groups) if group.get("name") in _CONSTANT]
    if not isinstance(scheduler, LambdaLR):
        raise InputError(
            f"args.lr_scheduler_type makes a {type(scheduler).__name__}, in which gates cannot keep a rate of their "
            "own: choose linear, cosine, constant, or another one that is a LambdaLR."
        )
    for index in constant:
        # A function: schedulers save the fields of objects.
        scheduler.lr_lambdas[index] = lambda _: 1.0
        # The constructor has set the rate of the first step.
        groups[index]["lr"] = groups[index]["initial_lr"]
    scheduler._last_lr = [group["lr"] for group in groups]


def shorten_printed_logs(callbacks: Iterable[Any]) -> None:
    """Let callbacks that print the log leave out the numbers of single layers; trackers and the history have them."""
    for callback in callbacks:
        if isinstance(callback, (PrinterCallback, ProgressCallback)):
            vars(callback)["on_log"] = partial(_print_log, callback)


def _print_log(callback: Any, *args: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
    shown = None if logs is None else {name: value for name, value in logs.items() if not _OF_LAYER.match(name)}
    return type(callback).on_log(callback, *args, logs=shown, **kwargs)


@contextmanager
def without_early_stopping(trainer: Trainer) -> Iterator[None]:
    """Take early stopping out of a trainer in a ``with`` block: in a search the score falls as heads close."""
    callbacks = _early_stopping(trainer)
    for callback in callbacks:
        trainer.remove_callback(callback)
    try:
        yield
    finally:
        for callback in callbacks:
            trainer.add_callback(callback)


def ended_by_score(trainer: Trainer) -> bool:
    """Return whether a training has ended because the score of early stopping no longer improved."""
    return any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in _early_stopping(trainer))


def _early_stopping(trainer: Trainer) -> list[EarlyStoppingCallback]:
    return [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
