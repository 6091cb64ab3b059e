"""A small input for any model, and the comparison of two models' outputs for it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from gating.discovery.inputs.batches import candidate_batches
from gating.discovery.refusals import check_has_values
from gating.errors import InputError

__all__ = [
    "cached_outputs",
    "forward_outputs",
    "make_probe",
    "max_relative_difference",
    "rounding_of",
    "rounding_tolerance",
    "run_probe",
    "tolerance_for",
]


Batch = TypeVar("Batch", bound=Mapping[str, Tensor])
# Relative size of a rounding that is one of 16 bits.
_COARSE = 1e-4
_TEXTS = {"input_ids", "decoder_input_ids"}
# Suffix of classes that pool the state of one token.
_CLASSIFIER = "ForSequenceClassification"


def make_probe(model: nn.Module, *, batch_size: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Make a random input that a transformers model accepts, from its signature and configuration.

    Models of several kinds of input, such as texts and images, get all of them, with placeholder tokens in the text
    where the model asks for them. Of several forms that an input may have, the first that the model runs on is taken.

    Args:
        model: The model to feed.
        batch_size: Number of examples.
        length: Number of tokens or audio frames of each example.

    Returns:
        The inputs by argument name, on the model's device: tokens ``[batch_size, length]``, images
        ``[batch_size, channels, height, width]``, spectrograms or waveforms.

    Raises:
        ValueError: The inputs of the model are unknown, its configuration lacks their sizes, or it runs on none of the
            batches that were made.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
        >>> make_probe(model)["input_ids"].shape
        torch.Size([2, 12])
    """
    batches = _candidates(model, batch_size=batch_size, length=length)
    first = _next(model, batches)
    if first is None:
        raise _unusable(model, "has no inputs that a batch can be made for")
    if first.keys() <= _TEXTS:
        return first  # Texts have one form, so that the model need not run.
    return dict(_first_to_run(model, chain([first], batches))[0])


def run_probe(model: nn.Module, probe: Mapping[str, Tensor] | None = None) -> tuple[Mapping[str, Tensor], list[Tensor]]:
    """Run a model on a batch, or on a random one that is made for it.

    Args:
        model: The model.
        probe: A batch as the model's keyword arguments; made from the model's configuration when left out.

    Returns:
        The batch, and its :func:`forward_outputs`.

    Raises:
        ValueError: No batch can be made, or the model does not run on it, or has no weights yet.
    """
    if not isinstance(probe, Mapping | None):
        raise _unusable(model, f"takes no probe of type {type(probe).__name__}")
    check_has_values(model)
    return _first_to_run(model, _candidates(model) if probe is None else iter([probe]))


def _candidates(model: nn.Module, *, batch_size: int = 2, length: int = 12) -> Iterator[dict[str, Tensor]]:
    """Yield the batches that are made for a model, on its device."""
    if not isinstance(model, PreTrainedModel):
        raise _unusable(model, "is no model of transformers")
    if getattr(model.config, "pad_token_id", 0) is None and type(model).__name__.endswith(_CLASSIFIER):
        # Decoders pool the last token before the padding, and refuse batches without a padding token.
        batch_size = 1
    with _evaluating(model), torch.random.fork_rng():
        for batch in candidate_batches(model, batch_size=batch_size, length=length):
            yield {name: tensor.to(model.device) for name, tensor in batch.items()}


def _next(model: nn.Module, batches: Iterator[Batch]) -> Batch | None:
    try:
        return next(batches, None)
    except InputError:
        raise
    except Exception as error:  # Each family lacks sizes in its own way.
        raise _unusable(model, f"has a configuration without the sizes of its input ({_reason(error)})") from error


def _first_to_run(model: nn.Module, batches: Iterator[Batch]) -> tuple[Batch, list[Tensor]]:
    """Return the first batch that a model runs on, with its outputs; raise ``InputError`` if there is none."""
    problem = "has no inputs that a batch can be made for"
    first: Exception | None = None
    while (batch := _next(model, batches)) is not None:
        try:
            outputs = forward_outputs(model, batch)
        except Exception as error:  # Models raise errors of all kinds on unsuitable inputs.
            if first is None:
                first, problem = error, f"does not run on {', '.join(batch)} ({_reason(error)})"
            continue
        if outputs:
            return batch, outputs
        if first is None:
            problem = f"returns no tensors for {', '.join(batch)}"
    raise _unusable(model, problem) from first


def _unusable(model: nn.Module, why: str) -> ValueError:
    return InputError(
        f"{type(model).__name__} {why}: pass probe={{argument name: tensor, ...}}, one batch that the model takes."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".: ")


def forward_outputs(model: nn.Module, probe: Mapping[str, Tensor], *, with_gradients: bool = False) -> list[Tensor]:
    """Return the floating-point output tensors of a model for a batch, without attentions, in evaluation mode.

    All modules keep their mode, and the global random numbers their state.
    """
    # Some encoders draw random numbers in evaluation, too, such as masked patches.
    with _evaluating(model), torch.set_grad_enabled(with_gradients), torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = model(**probe)
    return list(_tensors(outputs))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
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

    Returns:
        Two tensors ``[batch, vocab]`` that should be equal, or None for a model without a cache.
    """
    name = "decoder_input_ids" if "decoder_input_ids" in probe else "input_ids"
    if name not in probe or not (isinstance(model, PreTrainedModel) and model.can_generate()):
        return None
    with _evaluating(model), torch.no_grad():
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

    Example:
        >>> max_relative_difference([torch.tensor([4.0, 1.0])], [torch.tensor([4.0, 2.0])])
        0.25
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    differences = [
        float(_largest((one - other).abs_()) / _largest(one).clamp_min(1e-30))
        for one, other in map(_without_equal_infinities, expected, actual)
        if one.numel()
    ]
    # max() would ignore NaN.
    return max((d if d == d else float("inf") for d in differences), default=0.0)


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
    """Return the relative error that another order of summation may cause: a hundred roundings, of 16 bits four.

    A hundred roundings of 16 bits, 0.8 for bfloat16, would hide any mistake.
    """
    eps = torch.finfo(dtype).eps
    return (4 if eps > _COARSE else 100) * eps


def rounding_of(outputs: list[Tensor]) -> float:
    """Return the relative size of one rounding of the coarsest of some tensors."""
    return max((torch.finfo(tensor.dtype).eps for tensor in outputs), default=0.0)


def rounding_tolerance(outputs: list[Tensor], perturbed: list[Tensor]) -> float:
    """Return the largest relative difference between two computations of a model's outputs that rounding explains.

    Models that amplify rounding, such as T5 with its unscaled attention logits, get a wider tolerance, in 16 bits up to
    a hundred roundings.

    Args:
        outputs: Outputs of the model.
        perturbed: Its outputs where features are lower by one rounding.
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
