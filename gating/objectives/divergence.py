"""The divergence of two softmaxes, in the memory of a few rows: decoders have 100,000 classes at each position."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["softmax_divergence"]

# Numbers of a copy in float32: what stays in the cache of a CPU, and is work enough for a kernel elsewhere.
_CHUNKS = {"cpu": 2**20}
_CHUNK = 2**24


def softmax_divergence(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, counted: Tensor | None = None
) -> Tensor:
    """Return the sum over positions of ``KL(softmax(teacher / temperature) || softmax(student / temperature))``.

    Logits are compared in float32, some rows at a time, forward and backward: beside the logits themselves, only the
    gradient of the student's is as large as they are.

    Args:
        student: Logits, ``[..., classes]``; differentiable.
        teacher: Logits of the same shape, which have no gradient.
        temperature: Softmax temperature.
        counted: Boolean mask of the positions to count, ``[...]``; None for all.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> softmax_divergence(logits, logits.flip(1), counted=torch.tensor([True, False]))
        tensor(1.5232)
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
