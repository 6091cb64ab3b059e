"""Ranks, and collectives that do nothing in a run of one process."""

from typing import Any, TypeVar

import torch
import torch.distributed
from lightning_fabric.utilities import rank_zero_only

from gating.distributed.watchdog import find_lost_process

Value = TypeVar("Value")

# Seconds in which a process ends after its connections have closed. Other errors are printed that much later.
_PATIENCE_S = 2.0


def rank() -> int:
    """Return the rank of this process, from 0."""
    return int(rank_zero_only.rank or 0)  # type: ignore[attr-defined]


def is_rank_zero() -> bool:
    """Return whether this process has rank 0, which alone writes and prints."""
    return rank() == 0


def world_size() -> int:
    """Return the number of processes."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def is_distributed() -> bool:
    """Return whether the process group is initialized."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def broadcast(value: Value) -> Value:
    """Return rank 0's value in all ranks; it must be picklable."""
    if not is_distributed():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def gather_objects(value: Value) -> list[Value]:
    """Return the values of all ranks in all ranks; they must be picklable."""
    values = [value] * world_size()
    if is_distributed():
        torch.distributed.all_gather_object(values, value)
    return values


def all_reduce_max(*values: int) -> tuple[int, ...]:
    """Return the maximum of each value over all ranks."""
    return _all_reduce(values, torch.distributed.ReduceOp.MAX)


def all_reduce_sum(value: int) -> int:
    """Return the sum of a value over all ranks."""
    return _all_reduce((value,), torch.distributed.ReduceOp.SUM)[0]


def _all_reduce(values: tuple[int, ...], operation: Any) -> tuple[int, ...]:
    if not is_distributed():
        return values
    # NCCL reduces tensors on GPUs only.
    device = "cuda" if torch.distributed.get_backend() == torch.distributed.Backend.NCCL else "cpu"
    reduced = torch.tensor(values, device=device)
    torch.distributed.all_reduce(reduced, operation)
    return tuple(reduced.tolist())


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error means that the connection to another rank, which has probably ended, is lost."""
    if not is_distributed():
        return False
    # NCCL, the store and sockets raise subclasses of DistError.
    if isinstance(error, torch.distributed.DistError):
        return True
    # gloo raises a plain RuntimeError, as other faults do: it is a lost connection if a process is really lost.
    return type(error) is RuntimeError and find_lost_process(patience_s=_PATIENCE_S) is not None
