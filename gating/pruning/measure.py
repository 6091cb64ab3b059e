"""Size of a model, and its latency compared with another model's."""

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
    """Latency of a forward pass of two models, timed alternately.

    Attributes:
        before: Median seconds of the first model.
        after: Median seconds of the second model.
        speedup: Median over the repeats of first / second; above 1, the second model is faster.
        repeats: Number of timings of each model.
        batch: Shape of the batch, such as ``32 x 128``.
    """

    before: float
    after: float
    speedup: float
    repeats: int
    batch: str


def compare_latency(
    before: nn.Module, after: nn.Module, batch: Mapping[str, Tensor], *, repeats: int = 15, warm_up: int = 2
) -> LatencyComparison:
    """Time two models on the same batch, in evaluation mode and without gradients.

    Args:
        before: The first model.
        after: The second model, on the same device.
        batch: Keyword arguments of both models.
        repeats: Number of timings of each model; they alternate, so that a busy machine slows both.
        warm_up: Number of untimed forward passes of each model.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> compare_latency(model, model, {"input_ids": torch.ones(2, 5, dtype=torch.long)}, repeats=3).batch
        '2 x 5'
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
    """Return the number of attention heads of a model.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> count_heads(model)
        8
    """
    return sum(block.num_heads for block in find_attention_blocks(model))


def count_heads_by_kind(model: nn.Module) -> dict[str, int]:
    """Return the number of attention heads of each kind (:attr:`AttentionBlock.kind`) in a model."""
    counts = Counter[str]()
    for block in find_attention_blocks(model):
        counts[block.kind] += block.num_heads
    return dict(counts)


def weight_megabytes(model: nn.Module) -> float:
    """Return the size of a model's saved weights in MB (millions of bytes); shared tensors count once.

    Example:
        >>> weight_megabytes(nn.Linear(1000, 250, bias=False))
        1.0
    """
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    size: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return size / 1e6
