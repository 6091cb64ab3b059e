"""Compact folders of models that are larger than one process should hold: each process writes its shards."""

from pathlib import Path

import torch
import torch.distributed
from transformers import PreTrainedModel

__all__ = ["has_room_for"]

# A whole model is held three times at the end of a run: to save it, to load it for a check, and dense for timings.
_COPIES = 3
_MEMORY = Path("/proc/meminfo")


def has_room_for(model: PreTrainedModel) -> bool:
    """Return whether the memory of rank 0 has room for whole copies of a sharded model, the same in all processes."""
    answer = [False]
    if torch.distributed.get_rank() == 0:
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        answer = [_COPIES * size <= _free_bytes()]
    torch.distributed.broadcast_object_list(answer)
    return answer[0]


def _free_bytes() -> float:
    """Return the bytes of memory that can be allocated; infinity where the system does not say."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), float("inf"))
