"""Knowledge distillation from a dense teacher (Hinton et al. 2015, arXiv 1503.02531)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gating.errors import InputError, RemedyError

__all__ = ["Distillation", "check_teacher", "distillation_loss"]

# Names of logits in model outputs; extractive question answering has two.
_LOGITS = ("logits", "start_logits", "end_logits")
_IGNORED = -100  # label of ignored positions in transformers


@dataclass(frozen=True)
class Distillation:
    """Mixture of the task's loss and the distance to a dense teacher's logits.

    Attributes:
        weight: Weight of the distance in ``(1 - weight) * task_loss + weight * distance``.
        temperature: Temperature of both softmaxes; above 1 the teacher's less likely classes count more.

    Raises:
        InputError: An attribute is out of range.
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
            task_loss: Loss of the task, a scalar.
            student: Outputs of the trained model.
            teacher: Outputs of the teacher on the same batch.
            labels: Labels of the batch; positions labeled -100 are ignored.
        """
        distances = [
            distillation_loss(
                student[name], teacher[name], temperature=self.temperature, counted=_counted(student[name], labels)
            )
            for name in _LOGITS
            if name in student
        ]
        return (1 - self.weight) * task_loss + self.weight * torch.stack(distances).mean()


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float, counted: Tensor | None = None) -> Tensor:
    """Return the distance between a student's and a teacher's logits, a scalar.

    ``temperature^2 KL(softmax(teacher / temperature) || softmax(student / temperature))``, averaged over all dimensions
    except the classes; the factor makes the gradients' magnitude independent of the temperature (section 2 of the
    paper). For regression, with a single logit, the mean squared error.

    Args:
        student: Logits, ``[..., classes]``; differentiable.
        teacher: Logits of the same shape.
        temperature: Softmax temperature.
        counted: Boolean mask of the positions to average over, ``[...]``; None for all.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0]])
        >>> distillation_loss(logits, logits, temperature=2.0)
        tensor(0.)
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
    """Check that a teacher has the same classes and logits as a student.

    Args:
        teacher: The dense model.
        student: The model to be trained.
        batch: Keyword arguments of both forward passes.

    Raises:
        RemedyError: The teacher has other classes.
        InputError: The teacher's logits have another name or shape.
    """
    ours, theirs = (getattr(getattr(model, "config", None), "id2label", None) for model in (student, teacher))
    if ours != theirs:
        raise RemedyError(
            f"The teacher has the classes {_listed(theirs)}, this data has {_listed(ours)}. Fine-tune the "
            "teacher on this data first",
            python=".",
            command=" (objective=none), or let this run do it: distillation.teacher=null.",
        )
    shapes = []
    for model in (student, teacher):
        was_training = model.training
        outputs = model.eval()(**batch)
        model.train(was_training)
        shapes.append({name: tuple(outputs[name].shape) for name in _LOGITS if name in outputs})
    if shapes[0] != shapes[1]:
        raise InputError(
            f"The teacher's outputs are {shapes[1]}, this model's are {shapes[0]}: it must have the same task and "
            "vocabulary."
        )


def _listed(names: Mapping[int, str] | None) -> str:
    return ", ".join(names.values()) if names else "none"
