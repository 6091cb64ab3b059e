"""The machine and the versions that the numbers of a run depend on."""

import os
import platform

import torch
import transformers

__all__ = ["machine", "versions"]


def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers of a run depend on."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def machine() -> str:
    """Return the name of the GPU, or the architecture of the CPU and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU with {os.cpu_count()} cores"
