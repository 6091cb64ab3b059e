"""Latency of a model compared with another model's, in turns and within a time."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["LEAST_REPEATS", "LatencyComparison", "compare_latency", "describe_batch", "margin", "seconds_of_pass"]

# Least time of one timing, as several slices of a scheduler, and the largest number of its forward passes.
_TIMING_SECONDS, _MAX_PASSES = 0.02, 20
# Fewer ratios say nothing about their own error.
LEAST_REPEATS = 3
# A pass that takes less time is warmed up by another one: the first also fills caches and chooses kernels.
_SHORT_PASS_S = 1.0


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of a forward pass of two models, timed alternately.

    Attributes:
        before: Median seconds of the first model.
        after: Median seconds of the second model.
        speedup: Median over the repeats of first / second; above 1, the second model is faster.
        repeats: Number of timings of each model.
        batch: Shape of the batch, such as ``32 x 128``.
        error: Relative standard error of the speedup; infinite if there were fewer than three repeats.
        words: The batch in words, such as ``32 x 128 tokens, p95``.
    """

    before: float
    after: float
    speedup: float
    repeats: int
    batch: str
    error: float = math.inf
    words: str = ""


def compare_latency(
    before: nn.Module,
    after: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    repeats: int = 15,
    warm_up: int = 2,
    precision: float | None = None,
    seconds: float = math.inf,
    before_seconds: float | None = None,
    length: str = "",
    on_timing: Callable[[], None] = lambda: None,
) -> LatencyComparison:
    """Time two models on the same batch, in evaluation mode and without gradients.

    A timing takes several passes of small models: on a busy machine, the scheduler would interrupt the slower of two
    passes of a millisecond at nearly every turn, and the faster one at few.

    Args:
        before: The first model.
        after: The second model, on the same device.
        batch: Keyword arguments of both models.
        repeats: Number of timings of each model; they alternate, so that a busy machine slows both.
        warm_up: Number of forward passes of each model before the timings; they decide the passes of a timing.
        precision: Relative standard error of the speedup up to which timing continues, with at most eight times
            ``repeats``; a busy machine takes more timings.
        seconds: Time after which it ends, with fewer repeats if need be. One pass of each model is always timed.
        before_seconds: Time of a pass of the first model from an earlier timing, for use where ``seconds`` are too few
            for a pass of both.
        length: Words for the length of the texts, such as ``p95``.
        on_timing: Function that is called after each timing.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> found = compare_latency(model, model, {"input_ids": torch.ones(2, 5, dtype=torch.long)}, repeats=3)
        >>> found.batch, found.words
        ('2 x 5', '2 x 5 tokens')
    """
    end = time.perf_counter() + seconds

    def timing(passes: int) -> tuple[float, float]:
        first = sum(_seconds(before, batch) for _ in range(passes)) / passes
        times = first, sum(_seconds(after, batch) for _ in range(passes)) / passes
        on_timing()
        return times

    with _evaluation_mode(before, after):
        if before_seconds is not None and seconds < 2 * before_seconds:
            times = [(before_seconds, _seconds(after, batch))]
        else:
            times = _repeat(timing, end=end, repeats=repeats, warm_up=warm_up, precision=precision)
    return LatencyComparison(
        before=statistics.median(first for first, _ in times),
        after=statistics.median(second for _, second in times),
        speedup=statistics.median(first / second for first, second in times),
        repeats=len(times),
        batch=_shape(next(iter(batch.values()))),
        error=_error_of_ratio(times),
        words=describe_batch(batch, length=length),
    )


def _repeat(
    timing: Callable[[int], tuple[float, float]], *, end: float, repeats: int, warm_up: int, precision: float | None
) -> list[tuple[float, float]]:
    """Return timings of both models, at least one; ``timing`` takes a number of passes, ``end`` is the deadline."""

    def fits(timings: list[tuple[float, float]], passes: int = 1) -> bool:
        return not timings or time.perf_counter() + passes * sum(timings[-1]) <= end

    def is_slow(timings: list[tuple[float, float]]) -> bool:
        return bool(timings) and sum(timings[-1]) > _SHORT_PASS_S

    # Slow passes are not much slower at first, and need no warm-up apart.
    warm: list[tuple[float, float]] = []
    while len(warm) < warm_up and fits(warm) and not is_slow(warm):
        warm.append(timing(1))
    fastest = min((seconds for pair in warm for seconds in pair), default=1.0)
    passes = math.ceil(_TIMING_SECONDS / max(fastest, _TIMING_SECONDS / _MAX_PASSES))
    times = [*warm] if is_slow(warm) else []
    while not _is_enough(times, repeats, precision) and fits(times or warm, passes):
        times.append(timing(passes))
    # Without time for another one, the warm-up is the timing.
    return times or warm[-1:]


def _is_enough(times: list[tuple[float, float]], repeats: int, precision: float | None) -> bool:
    if len(times) < repeats or precision is None:
        return len(times) >= repeats
    return len(times) >= 8 * repeats or _error_of_ratio(times) <= precision


def _error_of_ratio(times: list[tuple[float, float]]) -> float:
    """Return the relative standard error of the median ratio, from the median absolute deviation."""
    if len(times) < LEAST_REPEATS:
        return math.inf
    ratios = [first / second for first, second in times]
    median = statistics.median(ratios)
    deviation = 1.4826 * statistics.median(abs(ratio - median) for ratio in ratios)
    # The median of normal deviates has 1.2533 times the standard error of the mean.
    return float(1.2533 * deviation / len(ratios) ** 0.5 / median)


def seconds_of_pass(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Return the seconds of a forward pass in evaluation mode, without gradients; the second pass if they are few.

    Args:
        model: The model.
        batch: Its keyword arguments.
    """
    with _evaluation_mode(model):
        first = _seconds(model, batch)
        return first if first > _SHORT_PASS_S else _seconds(model, batch)


def margin(error: float) -> str:
    """Return a relative standard error in words.

    Args:
        error: The error; infinite if it is not known.

    Example:
        >>> margin(0.0063), margin(math.inf)
        ('± 0.6 %', '± unknown')
    """
    return f"± {100 * error:.1f} %" if math.isfinite(error) else "± unknown"


def describe_batch(batch: Mapping[str, Tensor], *, length: str = "") -> str:
    """Return a batch in words.

    Args:
        batch: Keyword arguments of a model.
        length: Words for the length of its texts, such as ``p95``.

    Example:
        >>> describe_batch({"input_ids": torch.ones(8, 107)}, length="p95")
        '8 x 107 tokens, p95'
        >>> describe_batch({"pixel_values": torch.ones(8, 3, 32, 32)}, length="p95")
        '8 x 3 x 32 x 32 pixel values'
    """
    if "input_ids" not in batch:
        name, tensor = next(iter(batch.items()))
        return f"{_shape(tensor)} {name.replace('_', ' ')}"
    words = f"{_shape(batch['input_ids'])} tokens"
    if "decoder_input_ids" in batch:
        words += f" and {_shape(batch['decoder_input_ids'])} of the decoder"
    return f"{words}, {length}" if length else words


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


@contextmanager
def _evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Set models to evaluation mode in a ``with`` block, and restore their modes at its end."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, was_training in zip(models, training, strict=True):
            model.train(was_training)


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
