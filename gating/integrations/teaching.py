"""A teacher in transformers' Trainer and those made from it: which can learn from one, and the loss of a batch."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size

from gating.errors import InputError
from gating.integrations.wrappers import base_model, is_sentence_model
from gating.proof.probe import make_probe
from gating.teachers.distillation import IGNORED, LOGITS, Distillation
from gating.teachers.teacher import Teacher

# Of the trainers of TRL, only this one has the loss of its model, or one that is the same.
_OF_LABELS = "SFTTrainer"


def teacher_for(
    trainer: Any,
    teacher: nn.Module | str | os.PathLike[str] | None,
    distillation: Distillation | None,
    *,
    is_frozen: bool,
    learns_from_itself: bool = False,
) -> Teacher | None:
    """Return the teacher that the arguments of a trainer give; None without one, or if it is the model itself."""
    if teacher is None and distillation is None:
        return None
    check_loss(trainer)
    if teacher is None:
        if is_frozen or learns_from_itself:
            return None
        raise InputError(
            "distillation= needs a teacher: give teacher=, a dense model fine-tuned on this data, or its folder."
        )
    made, student = Teacher(teacher, distillation=distillation), base_model(trainer.model)
    made.check(student, make_probe(student), tokenizer=trainer.processing_class)
    return made


def check_loss(trainer: Any) -> None:
    """Raise ``InputError`` for a trainer with another loss than that of labels, which would not be learned then."""
    classes = [cls for cls in type(trainer).__mro__ if cls.__module__.startswith("trl.")]
    of_trl = {cls.__name__ for cls in classes if "compute_loss" in vars(cls)}
    is_other = of_trl - {_OF_LABELS} or (of_trl and trainer.args.loss_type != "nll")
    if is_sentence_model(trainer.model) or is_other:
        raise InputError(
            f"{type(trainer).__name__} has another loss than that of labels: leave out teacher= and distillation=. "
            "Give loss= of sentence-transformers, ref_model= of TRL, or loss_type='nll' of its SFTTrainer."
        )


def taught_loss(
    trainer: Any, compute_loss: Callable[..., Any], model: nn.Module, inputs: dict[str, Any], *, num_items_in_batch: Any
) -> tuple[Tensor, Any]:
    """Return the loss of a batch with that of the trainer's teacher, a scalar, and the outputs.

    ``compute_loss`` is the method of the class that the gates were added to.
    """
    if getattr(compute_loss, "__qualname__", "") == f"{_OF_LABELS}.compute_loss":
        # It computes the loss without logits. It is that of the model.
        compute_loss = partial(Trainer.compute_loss, trainer)
    teacher = trainer.teacher
    # First: the teacher may be the model itself, of which gradient checkpointing repeats the last pass.
    with trainer.accelerator.autocast():
        answers = teacher(inputs)
    number, shares = _shares(trainer, inputs, num_items_in_batch)
    # The method may take the labels out. With the number of targets of the batch, the loss is its mean.
    called = {**inputs, **teacher.options}
    loss, outputs = compute_loss(model, called, return_outputs=True, num_items_in_batch=number)
    has_logits = any(getattr(outputs[name], "requires_grad", False) for name in LOGITS if name in outputs)
    if teacher.distillation.weight and not has_logits:
        raise InputError(
            f"compute_loss of {type(trainer).__name__} returns no logits with a gradient, for distillation=: return "
            "the outputs of model(**inputs) with the loss, and leave out use_liger_kernel."
        )
    with trainer.accelerator.autocast():
        mixed = teacher.loss(loss, outputs, inputs, model=trainer.model, answers=answers, factors=shares)
    return mixed, outputs


def is_added_up(trainer: Any, num_items_in_batch: Any) -> bool:
    """Return whether losses of the batches of a step are added up, and not averaged."""
    is_scaled = getattr(trainer, "loss_is_scaled_for_ga", None)  # Not in older versions of transformers.
    if is_scaled is not None:
        return bool(is_scaled)
    by_items = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    return by_items or trainer.compute_loss_func is not None


def _shares(
    trainer: Any, inputs: dict[str, Any], num_items_in_batch: Any
) -> tuple[Tensor | None, tuple[Tensor | float, float]]:
    """Return the number of targets of a batch, if the trainer counts them, and its shares of targets and examples."""
    is_added = is_added_up(trainer, num_items_in_batch)
    of_examples = (find_batch_size(inputs) or 1) / trainer.examples_of_step if is_added else 1.0
    labels = None if num_items_in_batch is None else trainer.teacher.labels(inputs)
    if labels is None:
        return None, (of_examples, of_examples)
    number = (labels != IGNORED).sum().clamp(min=1)
    # All processes together have this number of items, and their gradients are averaged.
    if trainer.args.average_tokens_across_devices:
        number = number * trainer.accelerator.num_processes
    return number, (number / num_items_in_batch if is_added else 1.0, of_examples)
