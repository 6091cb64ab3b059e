"""Ranks, and values exchanged between the processes of a run."""

from typing import TypeVar

import torch
import torch.distributed
from lightning_fabric.utilities import rank_zero_only
from torch import Tensor

from gating.errors import OperationError

__all__ = [
    "all_reduce_max",
    "broadcast",
    "check_same",
    "is_distributed",
    "is_lost_connection",
    "is_rank_zero",
    "rank",
]

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Return whether processes are connected for collectives."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_lost_connection(error: BaseException) -> bool:
    """Say whether an error means that another process of the run has ended: what was wrong, that one has said."""
    lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
    return is_distributed() and isinstance(error, RuntimeError) and lost


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(rank_zero_only.rank or 0)  # type: ignore[attr-defined]


def is_rank_zero() -> bool:
    """Say whether this process is the one that writes and prints."""
    return rank() == 0


def broadcast(value: Value) -> Value:
    """Return what the first process has here."""
    if not is_distributed():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def all_reduce_max(*values: int) -> tuple[int, ...]:
    """Return the highest of each value over all processes."""
    if not is_distributed():
        return values
    # Of the kind that the processes can exchange.
    device = "cuda" if torch.distributed.get_backend() == torch.distributed.Backend.NCCL else "cpu"
    found = torch.tensor(values, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return tuple(found.tolist())


def check_same(tensor: Tensor, what: str) -> None:
    """Make sure that a tensor is the same in all processes, to the bit.

    Args:
        tensor: The tensor; of one shape everywhere.
        what: Its name, for the message.

    Raises:
        RuntimeError: It is not.
    """
    if not is_distributed():
        return
    lowest, highest = tensor.detach().clone(), tensor.detach().clone()
    torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    # NaN equals nothing; that is for others to report.
    if not torch.equal(lowest.nan_to_num(), highest.nan_to_num()):
        apart = float((highest - lowest).abs().max())
        raise OperationError(
            f"{what} has drifted apart between the processes, by up to {apart:.1e}: they have not trained the same "
            "model. Does the trainer's strategy average all gradients?"
        )
