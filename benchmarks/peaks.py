"""The memory of this process, or of its GPU: in use now, and at its peak. Needs Linux."""

import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

MIB = 2**20
# Blocks of memory from this size on go back to the system as they are freed, so that its count of pages is ours.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def restart_peak() -> None:
    """Let the peak be counted anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def in_use() -> int:
    """Return the bytes in use now, after those are freed that nothing needs."""
    gc.collect()
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def start_peak() -> int:
    """Return the bytes in use now, as :func:`in_use`, and let the peak be counted from here."""
    before = in_use()
    restart_peak()
    return before


def peak() -> int:
    """Return the largest number of bytes in use since :func:`restart_peak`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors in this process: of those that are cut, the local part."""
    return sum(local.numel() * local.element_size() for local in map(_local, tensors))


def storages(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Return the local parts of tensors by the address of their memory."""
    return {local.untyped_storage().data_ptr(): local for local in map(_local, tensors)}


def _local(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
