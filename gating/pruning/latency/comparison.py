"""Latency of a model compared with another model's, and the time of one forward pass."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gating.proof.outputs import evaluating

__all__ = [
    "SHORT_PASS_S",
    "LatencyComparison",
    "describe_batch",
    "margin",
    "seconds_of_pass",
    "shape_in_words",
    "time_pass",
]

# A pass that takes less time is warmed up by another one: the first also fills caches and chooses kernels.
SHORT_PASS_S = 1.0


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of a forward pass of two models, timed alternately.

    Attributes:
        before: Median seconds of the first model.
        after: Median seconds of the second model.
        repeats: Number of timings of each model.
        batch: Shape of the batch, such as ``32 x 128``.
        error: Relative standard error of the speed-up; infinite if there were fewer than three repeats.
        words: The batch in words, such as ``32 x 128 tokens, p95``.
    """

    before: float
    after: float
    repeats: int
    batch: str
    error: float = math.inf
    words: str = ""

    @property
    def speedup(self) -> float:
        """The ratio of the two medians; above 1, the second model is faster."""
        return self.before / self.after


def seconds_of_pass(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Return the seconds of a forward pass in evaluation mode, without gradients; the second pass if they are few."""
    with evaluating(model):
        first = time_pass(model, batch)
        return first if first > SHORT_PASS_S else time_pass(model, batch)


def margin(error: float) -> str:
    """Return a relative standard error in words; it is infinite if it is not known.

    Example:
        >>> margin(0.0063), margin(math.inf)
        ('± 0.6 %', '± unknown')
    """
    return f"± {100 * error:.1f} %" if math.isfinite(error) else "± unknown"


def describe_batch(batch: Mapping[str, Tensor], *, length: str = "") -> str:
    """Return the keyword arguments of a model in words, with those for the length of its texts.

    Example:
        >>> describe_batch({"input_ids": torch.ones(8, 107)}, length="p95")
        '8 x 107 tokens, p95'
        >>> describe_batch({"pixel_values": torch.ones(8, 3, 32, 32)}, length="p95")
        '8 x 3 x 32 x 32 pixel values'
    """
    if "input_ids" not in batch:
        name, tensor = next(iter(batch.items()))
        return f"{shape_in_words(tensor)} {name.replace('_', ' ')}"
    words = f"{shape_in_words(batch['input_ids'])} tokens"
    if "decoder_input_ids" in batch:
        words += f" and {shape_in_words(batch['decoder_input_ids'])} of the decoder"
    return f"{words}, {length}" if length else words


def shape_in_words(tensor: Tensor) -> str:
    """Return the shape of a tensor, such as ``8 x 107``."""
    return " x ".join(map(str, tensor.shape))


@torch.inference_mode()
def time_pass(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Return the seconds of a forward pass, which the model computes in the mode that it is in."""
    device = next(model.parameters()).device
    _wait_for(device)
    start = time.perf_counter()
    model(**batch)
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
