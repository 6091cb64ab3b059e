"""A small input for any model, and the comparison of two models' outputs for it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

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


# Suffix of classes that pool the state of one token.
_CLASSIFIER = "ForSequenceClassification"


def make_probe(model: nn.Module, *, batch_size: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Make a random input that a transformers model accepts, from its configuration.

    Args:
        model: The model to feed.
        batch_size: Number of examples.
        length: Number of tokens or audio frames of each example.

    Returns:
        The inputs by argument name, on the model's device: tokens ``[batch_size, length]``, images
        ``[batch_size, channels, height, width]``, spectrograms or waveforms.

    Raises:
        ValueError: The inputs of the model are unknown, or its configuration lacks their sizes.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
        >>> make_probe(model)["input_ids"].shape
        torch.Size([2, 12])
    """
    name = str(getattr(model, "main_input_name", None))
    if not isinstance(model, PreTrainedModel) or name not in _MAKERS:
        raise _unusable(model, "has no known main_input_name")
    try:
        if getattr(model.config, "pad_token_id", 0) is None and type(model).__name__.endswith(_CLASSIFIER):
            # Decoders pool the last token before the padding, and refuse batches without a padding token.
            batch_size = 1
        generator = torch.Generator().manual_seed(0)
        probe = {name: _MAKERS[name](model, batch_size, length, generator) for name in sorted(_input_names(model))}
    except Exception as error:  # Each family lacks sizes in its own way.
        raise _unusable(model, f"has a configuration without the sizes of its input ({_reason(error)})") from error
    return {key: tensor.to(model.device) for key, tensor in probe.items()}


def _input_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the inputs that a forward pass needs."""
    accepts = inspect.signature(model.forward).parameters
    if getattr(model.config, "is_encoder_decoder", False):
        return {model.main_input_name} | ({"decoder_input_ids"} & set(accepts))
    if hasattr(model.config, "text_config") and hasattr(model.config, "vision_config"):
        # Text only, for models that insert images at special tokens of the text.
        splices = any(hasattr(model.config, key) for key in ("image_token_id", "image_token_index"))
        wanted = {"input_ids"} if splices else {"input_ids", "pixel_values"}
        return wanted & set(accepts) or {model.main_input_name}
    return {model.main_input_name}


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
    batch = make_probe(model) if probe is None else probe
    try:
        outputs = forward_outputs(model, batch)
    except Exception as error:  # Models raise errors of all kinds on unsuitable inputs.
        raise _unusable(model, f"does not run on {', '.join(batch)} ({_reason(error)})") from error
    if not outputs:
        raise _unusable(model, f"returns no tensors for {', '.join(batch)}")
    return batch, outputs


def _unusable(model: nn.Module, why: str) -> ValueError:
    return InputError(
        f"{type(model).__name__} {why}: pass probe={{argument name: tensor, ...}}, one batch that the model takes."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".: ")


def _make_tokens(model: PreTrainedModel, batch_size: int, length: int, generator: torch.Generator) -> Tensor:
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or length
    # Some families number positions from the padding index on.
    length = min(length, max(1, positions - 4))
    tokens = torch.randint(min(3, config.vocab_size - 1), config.vocab_size, (batch_size, length), generator=generator)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < config.vocab_size:
        # One end of text in each example: classifiers of some families require equal numbers.
        tokens[tokens == end] = 0
        tokens[:, -1] = end
    return tokens


def _make_image(model: PreTrainedModel, batch_size: int, _length: int, generator: torch.Generator) -> Tensor:
    config = getattr(model.config, "vision_config", model.config)
    # Some models take images of any size.
    size = getattr(config, "image_size", 64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(batch_size, config.num_channels, height, width, generator=generator)


def _make_spectrogram(model: PreTrainedModel, batch_size: int, length: int, generator: torch.Generator) -> Tensor:
    config = model.config
    if hasattr(config, "max_source_positions"):
        # Whisper requires 30 seconds; its encoder halves the number of frames.
        return torch.randn(batch_size, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
    return torch.randn(batch_size, length, config.feature_projection_input_dim, generator=generator)


def _make_sound(model: PreTrainedModel, batch_size: int, length: int, generator: torch.Generator) -> Tensor:
    num_samples = length
    for kernel, stride in zip(reversed(model.config.conv_kernel), reversed(model.config.conv_stride), strict=True):
        num_samples = (num_samples - 1) * stride + kernel
    return torch.randn(batch_size, num_samples, generator=generator)


_MAKERS: dict[str, Callable[[PreTrainedModel, int, int, torch.Generator], Tensor]] = {
    "input_ids": _make_tokens,
    "decoder_input_ids": _make_tokens,
    "pixel_values": _make_image,
    "input_features": _make_spectrogram,
    "input_values": _make_sound,
}


def forward_outputs(model: nn.Module, probe: Mapping[str, Tensor], *, with_gradients: bool = False) -> list[Tensor]:
    """Return the floating-point output tensors of a model for a batch, in evaluation mode.

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

    It is infinite for other shapes and for NaN.

    Example:
        >>> max_relative_difference([torch.tensor([4.0, 1.0])], [torch.tensor([4.0, 2.0])])
        0.25
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    differences = [
        float(_largest((one - other).abs_()) / _largest(one).clamp_min(1e-30))
        for one, other in zip(expected, actual, strict=True)
        if one.numel()
    ]
    # max() would ignore NaN.
    return max((d if d == d else float("inf") for d in differences), default=0.0)


def _largest(tensor: Tensor) -> Tensor:
    """Return the largest absolute value without a copy, because logits are large."""
    low, high = tensor.aminmax()
    return torch.maximum(-low, high)


def tolerance_for(dtype: torch.dtype) -> float:
    """Return the relative error that another order of summation may cause: about a hundred roundings."""
    return 100 * torch.finfo(dtype).eps


def rounding_of(outputs: list[Tensor]) -> float:
    """Return the relative size of one rounding of the coarsest of some tensors."""
    return max((torch.finfo(tensor.dtype).eps for tensor in outputs), default=0.0)


def rounding_tolerance(outputs: list[Tensor], perturbed: list[Tensor]) -> float:
    """Return the largest relative difference between two computations of a model's outputs that rounding explains.

    Models that amplify rounding, such as T5 with its unscaled attention logits, get a wider tolerance.

    Args:
        outputs: Outputs of the model.
        perturbed: Its outputs where features are lower by one rounding.
    """
    sensitivity = min(1e-4, max_relative_difference(outputs, perturbed))
    return max([30 * sensitivity, *(tolerance_for(tensor.dtype) for tensor in outputs)])


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
