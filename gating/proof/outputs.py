"""Outputs of models for one batch, and how much they differ: the comparison of every proof."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

# Errors of the machine, which say nothing about a model.
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
# Relative size of a rounding that is one of 16 bits.
_COARSE = 1e-4


def forward_outputs(model: nn.Module, probe: Mapping[str, Tensor], *, with_gradients: bool = False) -> list[Tensor]:
    """Return the floating-point output tensors of a model for a batch, without attentions, in evaluation mode.

    All modules keep their mode, and the global random numbers their state.
    """
    # Some encoders draw random numbers in evaluation, too, such as masked patches.
    with evaluating(model), torch.set_grad_enabled(with_gradients), torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = model(**probe)
    return list(_tensors(outputs))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation inside a ``with`` block, and restore the mode of each module: frozen parts differ."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


def cached_outputs(model: nn.Module, probe: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return a decoder's logits for the last token of a batch: from one forward pass, and from a step with a cache.

    They should be equal, ``[batch, vocab]``; None for a model without a cache.
    """
    name = "decoder_input_ids" if "decoder_input_ids" in probe else "input_ids"
    if name not in probe or not (isinstance(model, PreTrainedModel) and model.can_generate()):
        return None
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        full = model(**probe)
        first = model(**{**probe, name: probe[name][:, :-1]}, use_cache=True)
        caches = {key: value for key, value in first.items() if isinstance(value, Cache)}
        if not caches or "logits" not in first:
            return None
        step = model(**{**probe, name: probe[name][:, -1:]}, **caches)
    return full.logits[:, -1], step.logits[:, -1]


def max_relative_difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Return the largest difference between two lists of tensors, relative to the largest value of each tensor.

    It is infinite for other shapes and for NaN. Infinite values, as of tokens that cannot be chosen, have to be equal.
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    differences = [
        float(_largest((one - other).abs_()) / _largest(one).clamp_min(_least_divisor(one)))
        for one, other in map(_without_equal_infinities, expected, actual)
        if one.numel()
    ]
    # max() would ignore NaN.
    return max((d if d == d else float("inf") for d in differences), default=0.0)


def _least_divisor(tensor: Tensor) -> float:
    """Return a number in place of a largest value of 0; in half precision, a smaller one would be 0, too."""
    return max(1e-30, torch.finfo(tensor.dtype).tiny) if tensor.is_floating_point() else 1e-30


def _without_equal_infinities(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors without the places where both have the same infinite value."""
    if not one.numel() or not _largest(one).isinf():
        return one, other
    differs = ~(one.isinf() & (one == other))
    return one[differs], other[differs]


def _largest(tensor: Tensor) -> Tensor:
    """Return the largest absolute value without a copy, because logits are large."""
    low, high = tensor.aminmax()
    return torch.maximum(-low, high).abs()


def tolerance_for(dtype: torch.dtype) -> float:
    """Return the relative error that another order of summation may cause: a hundred roundings, of 16 bits four."""
    # A hundred roundings of 16 bits, 0.8 for bfloat16, would hide any mistake.
    eps = torch.finfo(dtype).eps
    return (4 if eps > _COARSE else 100) * eps


def rounding_of(outputs: list[Tensor]) -> float:
    """Return the relative size of one rounding of the coarsest of some tensors."""
    return max((torch.finfo(tensor.dtype).eps for tensor in outputs), default=0.0)


def rounding_tolerance(outputs: list[Tensor], perturbed: list[Tensor]) -> float:
    """Return the largest relative difference that rounding explains, from outputs with features one rounding lower.

    Models that amplify rounding, such as T5 with its unscaled attention logits, get a wider tolerance, in 16 bits up to
    a hundred roundings.
    """
    sensitivity, rounding = max_relative_difference(outputs, perturbed), rounding_of(outputs)
    amplified = min(4 * sensitivity, 100 * rounding) if rounding > _COARSE else 30 * min(1e-4, sensitivity)
    return max([amplified, *(tolerance_for(tensor.dtype) for tensor in outputs)])


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            # Probabilities have an entry for each present head.
            if not str(name).endswith("attentions"):
                yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
