"""Memory of a process that loads a saved model, sharded and whole."""

from typing import Any

import torch
import torch.distributed
from transformers import PreTrainedModel

from benchmarks.sharding.memory import in_use, peak, start_peak
from benchmarks.sharding.models import load_sharded, load_whole, whole_bytes
from benchmarks.sharding.processes import device

__all__ = ["load"]


def load(folder: str, warm_up: str, *, sharded: bool) -> dict[str, Any]:
    """Load a model in this process; return its bytes, and those above the start at the peak and afterwards.

    Args:
        folder: Folder of the model.
        warm_up: Folder of a small model that is loaded before: what torch and Python allocate once is no part of it.
        sharded: Whether to load it sharded.
    """
    for each in (warm_up, folder):
        torch.distributed.barrier()
        start = start_peak()
        model = load_sharded(each) if sharded else load_whole(each, device())
        _write(model)
        highest, held = peak() - start, in_use() - start
        model_bytes = whole_bytes(model.parameters())
        del model
    return {"model": model_bytes, "peak": highest, "held": held}


@torch.no_grad()
def _write(model: PreTrainedModel) -> None:
    """Write each weight, as the first step of training does: on a CPU, weights are parts of the file until then."""
    for weight in model.parameters():
        weight.fill_(0.0)
