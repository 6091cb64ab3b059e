"""A small input for any model, and the comparison of what two models make of it."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["forward_outputs", "make_probe", "max_relative_difference", "tolerance_for"]


def make_probe(model: nn.Module, *, batch_size: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Make a random input that a transformers model accepts, from its configuration.

    Args:
        model: The model to feed.
        batch_size: Number of examples.
        length: Number of tokens of each, for models that read tokens.

    Raises:
        ValueError: The model does not say what it reads; pass a batch of your own then.
    """
    generator = torch.Generator().manual_seed(0)
    name = getattr(model, "main_input_name", None)
    if isinstance(model, PreTrainedModel) and name == "input_ids":
        vocab_size = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
        # Some families number positions from the padding index on, which takes two or so of them.
        length = min(length, max(1, getattr(model.config, "max_position_embeddings", length + 4) - 4))
        probe = {"input_ids": torch.randint(vocab_size, (batch_size, length), generator=generator)}
    elif isinstance(model, PreTrainedModel) and name == "pixel_values":
        size = model.config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape = (batch_size, model.config.num_channels, height, width)
        probe = {"pixel_values": torch.randn(shape, generator=generator)}
    else:
        raise ValueError(
            f"{type(model).__name__} does not say what it reads: pass probe={{argument name: tensor, ...}}, one batch."
        )
    return {key: tensor.to(model.device) for key, tensor in probe.items()}


def forward_outputs(model: nn.Module, probe: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the floating-point tensors that a model makes of a batch, in evaluation mode and without gradients.

    The model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(**probe)
    finally:
        model.train(was_training)
    return list(_tensors(outputs))


def max_relative_difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Return the largest difference between two lists of tensors, relative to the largest value of each tensor."""
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    differences = [
        float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
        for one, other in zip(expected, actual, strict=True)
        if one.numel()
    ]
    # NaN would compare as equal to everything.
    return max((d if d == d else float("inf") for d in differences), default=0.0)


def tolerance_for(dtype: torch.dtype) -> float:
    """Return how far apart two orders of the same sums may come out: about a hundred roundings."""
    return 100 * torch.finfo(dtype).eps


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
