"""Gradients of a sharded model with gates: averages of those that FSDP2 does not average, and their norm."""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["average_gradients", "clip_gradients"]


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters that are whole in every process over all processes, in place.

    These are gates, multipliers and adapters; FSDP2 averages those of the parameters that it has cut. To call once
    before each optimizer step.

    Args:
        parameters: All trained parameters.
    """
    gradients = [grad for grad in _gradients(parameters) if not isinstance(grad, DTensor)]
    if not gradients:
        return
    flat = torch.cat([grad.flatten() for grad in gradients]).div_(torch.distributed.get_world_size())
    torch.distributed.all_reduce(flat)
    for grad, averaged in zip(gradients, flat.split([grad.numel() for grad in gradients]), strict=True):
        grad.copy_(averaged.view_as(grad))


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], *, max_norm: float | None = None, max_value: float | None = None
) -> None:
    """Limit the norm of all gradients together, or the size of each entry, in place.

    ``torch.nn.utils.clip_grad_norm_`` takes either shards or whole gradients, not both.

    Args:
        parameters: All trained parameters, after :func:`average_gradients`.
        max_norm: Largest L2 norm.
        max_value: Largest absolute value of an entry.
    """
    gradients = list(_gradients(parameters))
    shards = [grad for grad in gradients if isinstance(grad, DTensor)]
    others = [grad for grad in gradients if not isinstance(grad, DTensor)]
    local = [*(grad.to_local() for grad in shards), *others]
    if max_value is not None:
        for grad in local:
            grad.clamp_(-max_value, max_value)
    if max_norm is not None and gradients:
        squares = sum((_square(shard.to_local()) for shard in shards), torch.zeros((), device=local[0].device))
        torch.distributed.all_reduce(squares)
        norm = (squares + sum(_square(grad) for grad in others)).sqrt()
        # clip_grad_norm_ does the same.
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in local:
            grad.mul_(factor.to(grad.dtype))


def _gradients(parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    return (parameter.grad for parameter in parameters if parameter.grad is not None)


def _square(tensor: Tensor) -> Tensor:
    return tensor.float().square().sum()
