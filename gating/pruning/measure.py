"""Size and speed of a model beside another's, measured in one process."""

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gating.discovery.find import find_attention_blocks

__all__ = ["LatencyComparison", "compare_latency", "count_heads", "count_heads_by_kind", "weight_megabytes"]


@dataclass(frozen=True)
class LatencyComparison:
    """Median time of a forward pass of two models, from interleaved repeats.

    Attributes:
        before: Median seconds of the first model.
        after: Median seconds of the second model.
        speedup: Median over the repeats of the ratio first / second; above 1 the second is faster.
        repeats: How often each was timed.
        batch: Shape of the batch.
    """

    before: float
    after: float
    speedup: float
    repeats: int
    batch: str


def compare_latency(
    before: nn.Module, after: nn.Module, batch: Mapping[str, Tensor], *, repeats: int = 15, warm_up: int = 2
) -> LatencyComparison:
    """Time two models side by side on the same batch, in evaluation mode and without gradients.

    Args:
        before: The first model.
        after: The second model, on the same device.
        batch: Keyword arguments of both models.
        repeats: How often each is timed; they take turns, so that a busy machine slows both.
        warm_up: How many passes of each go before.
    """
    training = before.training, after.training
    before.eval()
    after.eval()
    for _ in range(warm_up):
        _seconds(before, batch)
        _seconds(after, batch)
    times = [(_seconds(before, batch), _seconds(after, batch)) for _ in range(repeats)]
    before.train(training[0])
    after.train(training[1])
    return LatencyComparison(
        before=statistics.median(first for first, _ in times),
        after=statistics.median(second for _, second in times),
        speedup=statistics.median(first / second for first, second in times),
        repeats=repeats,
        batch=" x ".join(map(str, next(iter(batch.values())).shape)),
    )


@torch.inference_mode()
def _seconds(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    device = next(model.parameters()).device
    _wait_for(device)
    start = time.perf_counter()
    model(**batch)
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def count_heads(model: nn.Module) -> int:
    """Count the attention heads of a model."""
    return sum(block.num_heads for block in find_attention_blocks(model))


def count_heads_by_kind(model: nn.Module) -> dict[str, int]:
    """Count the attention heads of each kind that a model has (:attr:`AttentionBlock.kind`)."""
    counts = Counter[str]()
    for block in find_attention_blocks(model):
        counts[block.kind] += block.num_heads
    return dict(counts)


def weight_megabytes(model: nn.Module) -> float:
    """Return the size of a model's weights when saved, in MB (millions of bytes); shared ones count once."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    size: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return size / 1e6
