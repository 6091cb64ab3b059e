"""Knowledge distillation from the outputs of a dense teacher (Hinton et al. 2015, arXiv 1503.02531)."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gating.errors import InputError
from gating.gates.hard_concrete import are_numbers

# Names of logits in model outputs; extractive question answering has two.
LOGITS = ("logits", "start_logits", "end_logits")
# Names of hidden states in model outputs, with the masks of their positions in a batch.
HIDDEN_STATES = {
    "hidden_states": "attention_mask",
    "encoder_hidden_states": "attention_mask",
    "decoder_hidden_states": "decoder_attention_mask",
}
IGNORED = -100  # label of ignored positions in transformers
_SMALLEST = 1e-6  # squared norm of a state, as the embedding of padding may be zero
# Numbers of a copy in float32: what stays in the cache of a CPU, and is work enough for a kernel elsewhere.
_CHUNKS = {"cpu": 2**20}
_CHUNK = 2**24


@dataclass(frozen=True)
class Distillation:
    """Mixture of the task's loss and the distances to a dense teacher's logits and hidden states.

    ``(1 - weight) * task_loss + weight * distance of the logits + hidden_weight * distance of the hidden states``

    Attributes:
        weight: Weight of the distance of the logits, which the loss of the task loses, 0 to 1.
        temperature: Temperature of both softmaxes; above 1 the teacher's less likely classes count more.
        hidden_weight: Weight of the distance of the hidden states of all layers, which needs a teacher as wide and as
            deep as the model; 0 to compare logits alone.

    Raises:
        InputError: An attribute is out of range.
    """

    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        if not (are_numbers(self.weight) and 0 <= self.weight <= 1):
            raise InputError(f"weight={self.weight!r} is not a share of the loss: give a number from 0 to 1.")
        if not (are_numbers(self.temperature) and 0 < self.temperature < math.inf):
            raise InputError(f"temperature={self.temperature!r} must be positive.")
        if not (are_numbers(self.hidden_weight) and 0 <= self.hidden_weight < math.inf):
            raise InputError(f"hidden_weight={self.hidden_weight!r}: give 0 for logits alone, or a positive number.")

    def loss(
        self,
        task_loss: Tensor,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any],
        labels: Tensor | None,
        *,
        masks: Mapping[str, Tensor] | None = None,
        layers: Mapping[str, Sequence[int]] | None = None,
        problem: str | None = None,
        factors: tuple[Tensor | float, Tensor | float] = (1.0, 1.0),
    ) -> Tensor:
        """Return the mixed loss, a scalar; :meth:`gating.Teacher.loss` calls it with the arguments of a batch.

        Args:
            task_loss: Loss of the task, a scalar.
            student: Outputs of the trained model.
            teacher: Outputs of the teacher on the same batch.
            labels: Labels of the positions of the logits; those labeled -100 are ignored.
            masks: ``attention_mask`` and ``decoder_attention_mask``, ``[batch, length]``, if there are any: hidden
                states of positions with 0 are ignored.
            layers: For each list that whole layers have left, by its name, the teacher's numbers of the layers that
                stay.
            problem: ``problem_type`` of the models' configuration; without it, as transformers reads it from labels.
            factors: Factors of what is a mean over targets, and of the hidden states, which are a mean over examples.
        """
        # That of a batch without a target is NaN.
        loss = (1 - self.weight) * task_loss if self.weight < 1 else torch.zeros_like(task_loss)
        if self.weight:
            distances = [
                distillation_loss(
                    student[name],
                    teacher[name],
                    temperature=self.temperature,
                    counted=_counted(student[name], labels),
                    problem=_problem(name, student[name], labels, problem),
                )
                for name in LOGITS
                if name in student
            ]
            loss = loss + self.weight * torch.stack(distances).mean()
        loss = factors[0] * loss
        if self.hidden_weight:
            distance = _mean_hidden_loss(student, teacher, labels, masks or {}, layers or {})
            loss = loss + factors[1] * self.hidden_weight * distance
        return loss


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    counted: Tensor | None = None,
    problem: str | None = None,
) -> Tensor:
    """Return the distance between a student's and a teacher's logits, ``[..., classes]``, a scalar.

    ``temperature^2 KL(softmax(teacher / temperature) || softmax(student / temperature))``, averaged over all positions,
    or those of the mask ``counted``, ``[...]``; the factor makes the gradients' magnitude independent of the
    temperature (section 2 of the paper). For regression, or a single logit, the mean squared error; for several labels
    of one example, the same distance of the probabilities that each label is there and is not, averaged over labels,
    too.
    """
    with torch.autocast(device_type=student.device.type, enabled=False):
        if problem == "multi_label_classification":
            # The sigmoid of a logit is the softmax of the logit and 0.
            student, teacher = (torch.stack([one, torch.zeros_like(one)], dim=-1) for one in (student, teacher))
        elif problem == "regression" or student.shape[-1] == 1:
            return functional.mse_loss(student.float(), teacher.float())
        total = softmax_divergence(student, teacher, temperature=temperature, counted=counted)
        number = student.shape[:-1].numel() if counted is None else counted.sum().clamp(min=1)
        return temperature**2 * total / number


def hidden_loss(student: Tensor, teacher: Tensor, *, counted: Tensor | None = None) -> Tensor:
    """Return the distance between hidden states of a student and a teacher, ``[batch, length, width]``, a scalar.

    The squared error of each position, relative to the teacher's squared norm there, averaged over the positions of
    each example, or those of the mask ``counted``, and then over examples, so that a batch may be divided among
    processes. Being relative, its weight means the same for every family and layer, and the few tokens of a decoder
    with very large states (Sun et al. 2024, arXiv 2402.17762) do not outweigh all others.
    """
    with torch.autocast(device_type=student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        errors = (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp(min=_SMALLEST)
        if counted is None:
            return errors.mean()
        counted = counted.to(errors.dtype)
        return ((errors * counted).sum(-1) / counted.sum(-1).clamp(min=1)).mean()


def _mean_hidden_loss(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    labels: Tensor | None,
    masks: Mapping[str, Tensor],
    layers: Mapping[str, Sequence[int]],
) -> Tensor:
    """Return the distance of hidden states, averaged over embeddings and layers, of encoder and decoder."""
    distances = []
    for name, mask_name in HIDDEN_STATES.items():
        mask, tower = masks.get(mask_name), name.removesuffix("hidden_states").rstrip("_")
        ours, theirs = student.get(name) or (), teacher.get(name) or ()
        present = [numbers for path, numbers in layers.items() if tower in path and len(numbers) == len(ours) - 1]
        for own, other in _pairs(ours, theirs, present[0] if present else ()):
            if mask is None and name == "decoder_hidden_states":
                counted = _counted(own, labels)
            else:
                counted = mask if mask is not None and mask.shape == own.shape[:-1] else None
            distances.append(hidden_loss(own, other, counted=counted))
    return torch.stack(distances).mean()


def _pairs(ours: Sequence[Tensor], theirs: Sequence[Tensor], present: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the states of a student and a teacher that correspond: a layer that has left passes its input on.

    ``present`` are the teacher's numbers of the student's layers, if some have left; if they are unknown, the states
    before the first and after the last layer correspond.
    """
    if len(ours) == len(theirs):
        yield from zip(ours, theirs, strict=True)
        return
    yield ours[0], theirs[0]
    last = len(theirs) - 2
    for number in range(last if present else 0):
        passed = bisect_right(present, number)
        # Models normalize the state after their last layer, whose input is not known then.
        if passed < len(present):
            yield ours[passed], theirs[number + 1]
    yield ours[-1], theirs[-1]


def _problem(name: str, logits: Tensor, labels: Tensor | None, problem: str | None) -> str | None:
    """Return the kind of problem that logits answer, as transformers tells it; None where an example has more vectors.

    For these, a configuration may have that of an earlier task.
    """
    if name != "logits" or logits.dim() != 2:
        return None
    are_several = labels is not None and labels.is_floating_point() and labels.shape == logits.shape
    return problem or ("multi_label_classification" if are_several and logits.shape[1] > 1 else None)


def _counted(values: Tensor, labels: Tensor | None) -> Tensor | None:
    """Return the mask of the positions of logits or states, ``[..., width]``, that have a label; None for all."""
    if labels is None or labels.is_floating_point() or labels.shape != values.shape[:-1] or labels.dim() < 2:
        return None
    return labels != IGNORED


def softmax_divergence(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, counted: Tensor | None = None
) -> Tensor:
    """Return the sum over positions of ``KL(softmax(teacher / temperature) || softmax(student / temperature))``.

    Logits, ``[..., classes]``, are compared in float32, some rows at a time, forward and backward: beside the logits
    themselves, only the gradient of the student's is as large as they are. Positions outside of the mask ``counted``,
    ``[...]``, do not count.
    """
    flat = [logits.reshape(-1, logits.shape[-1]) for logits in (student, teacher.detach())]
    rows = None if counted is None else counted.flatten().nonzero().flatten()
    total: Tensor = _Divergence.apply(*flat, temperature, rows)  # type: ignore[no-untyped-call]
    return total


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, rows: Tensor | None) -> Tensor:
        ctx.save_for_backward(student, teacher, rows)
        ctx.temperature = temperature
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        for _, ours, theirs in _chunks(student, teacher, temperature, rows):
            total += (theirs.exp() * (theirs - ours)).sum()
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, rows = ctx.saved_tensors
        gradient = torch.zeros_like(student) if rows is not None else torch.empty_like(student)
        factor = gradients[0] / ctx.temperature
        for part, ours, theirs in _chunks(student, teacher, ctx.temperature, rows):
            gradient[part] = (ours.exp_().sub_(theirs.exp_()).mul_(factor)).to(gradient.dtype)
        return gradient, None, None, None


def _chunks(
    student: Tensor, teacher: Tensor, temperature: float, rows: Tensor | None
) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Yield the numbers of some rows, and both models' logarithms of probabilities there, in float32."""
    size = max(1, _CHUNKS.get(student.device.type, _CHUNK) // student.shape[-1])
    for start in range(0, len(student) if rows is None else len(rows), size):
        part = slice(start, start + size) if rows is None else rows[start : start + size]
        ours, theirs = ((logits[part].float() / temperature).log_softmax(-1) for logits in (student, teacher))
        yield part, ours, theirs
