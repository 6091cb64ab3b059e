"""Learning from a dense model what it answers, besides the labels (Hinton et al. 2015, arXiv 1503.02531)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gating.errors import InputError, RemedyError

__all__ = ["Distillation", "check_teacher", "distillation_loss"]

# What models call their answers; extractive question answering has two.
_ANSWERS = ("logits", "start_logits", "end_logits")
_IGNORED = -100  # the label of positions that count for nothing, in all of transformers


@dataclass(frozen=True)
class Distillation:
    """Mix the loss of the task with the distance to a dense model's answers.

    Attributes:
        weight: Share of the distance, ``(1 - weight) * task + weight * distance``.
        temperature: Of both models' answers; above 1 the teacher's second thoughts count more.
    """

    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f"weight={self.weight} is not a share of the loss: give a number from 0 to 1.")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature={self.temperature} must be positive.")

    def loss(
        self, task_loss: Tensor, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], labels: Tensor | None
    ) -> Tensor:
        """Return the mixed loss, a scalar.

        Args:
            task_loss: Loss of the task.
            student: Outputs of the model that is trained.
            teacher: Outputs of the dense model on the same batch.
            labels: Labels of the batch; where there is one for each position, those with -100 do not count.
        """
        distances = [
            distillation_loss(
                student[name], teacher[name], temperature=self.temperature, counted=_counted(student[name], labels)
            )
            for name in _ANSWERS
            if name in student
        ]
        return (1 - self.weight) * task_loss + self.weight * torch.stack(distances).mean()


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float, counted: Tensor | None = None) -> Tensor:
    """Return how far a student's logits are from a teacher's, a scalar.

    ``temperature^2 KL(softmax(teacher / temperature) || softmax(student / temperature))``, averaged over everything but
    the classes; the factor keeps gradients of one size whatever the temperature (section 2 of the paper). A single
    logit is a number that was predicted, not a class: its squared error is returned.

    Args:
        student: Logits, ``[..., classes]``; differentiable.
        teacher: Logits of the same shape.
        temperature: What both are divided by.
        counted: Which positions count, ``[...]``; all of them when left out.

    Example:
        >>> distillation_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 2.0]]), temperature=2.0).item()
        0.0
    """
    with torch.autocast(device_type=student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        if student.shape[-1] == 1:
            return functional.mse_loss(student, teacher)
        if counted is not None:
            student, teacher = student[counted], teacher[counted]
        num_classes = student.shape[-1]
        return temperature**2 * functional.kl_div(
            (student / temperature).log_softmax(-1).view(-1, num_classes),
            (teacher / temperature).log_softmax(-1).view(-1, num_classes),
            reduction="batchmean",
            log_target=True,
        )


def _counted(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    if labels is None or labels.is_floating_point() or labels.shape != logits.shape[:-1] or labels.dim() < 2:
        return None
    return labels != _IGNORED


@torch.no_grad()
def check_teacher(teacher: nn.Module, student: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Make sure that a teacher answers the same question as a student.

    Args:
        teacher: The dense model.
        student: The model to be trained.
        batch: Keyword arguments of both.

    Raises:
        ValueError: It has other classes, or other answers.
    """
    ours, theirs = (getattr(getattr(model, "config", None), "id2label", None) for model in (student, teacher))
    if ours != theirs:
        raise RemedyError(
            f"The teacher tells apart the classes {_listed(theirs)}, this data has {_listed(ours)}. Fine-tune the "
            "teacher on this data first",
            python=".",
            command=" (objective=none), or let this run do it: distillation.teacher=null.",
        )
    shapes = []
    for model in (student, teacher):
        was_training = model.training
        outputs = model.eval()(**batch)
        model.train(was_training)
        shapes.append({name: tuple(outputs[name].shape) for name in _ANSWERS if name in outputs})
    if shapes[0] != shapes[1]:
        raise InputError(
            f"The teacher answers with {shapes[1]}, this model with {shapes[0]}: it must have the same task and "
            "vocabulary."
        )


def _listed(names: Mapping[int, str] | None) -> str:
    return ", ".join(names.values()) if names else "none"
