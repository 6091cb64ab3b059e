"""Sounds, and inputs that few models take: boxes of words, series, states of a game."""

from collections.abc import Callable, Iterator
from math import prod

import torch

from gating.proof.input_sizes import Request, Variant, make_tokens, required_arguments

__all__ = ["OTHERS", "spectrogram_variants", "waveform_variants"]


def _boxes(request: Request, _argument: str) -> Variant:
    """Return the boxes of words, ``[batch_size, length, 4]``, of coordinates that grow."""
    length = make_tokens(request).shape[1]
    sizes = request.setting("dim_bbox")
    most = 100 if sizes is None else 1
    corners = request.integers(0, max(1, most // 2), request.batch_size, length, 2)
    extents = request.integers(1, max(2, most // 2), request.batch_size, length, 2)
    boxes = torch.cat([corners, corners + extents], -1)
    if sizes is None:
        return {"bbox": boxes}
    return {"bbox": torch.cat([boxes, boxes], -1)[..., :sizes].float()}


def _series(request: Request, argument: str) -> Variant:
    """Return the past values of a series, ``[batch_size, steps, channels]``."""
    channels = request.setting("num_input_channels", "input_size") or 1
    steps = request.setting("context_length", "seq_length") or 16
    return {argument: request.random(request.batch_size, steps, channels)}


def _states(request: Request, _argument: str) -> Variant:
    """Return the states, actions and rewards of a game, ``[batch_size, length, size]``."""
    config, rows, length = request.model.config, request.batch_size, request.length
    return {
        "states": request.random(rows, length, config.state_dim),
        "actions": request.random(rows, length, config.act_dim),
        "rewards": request.random(rows, length, 1),
        "returns_to_go": request.random(rows, length, 1),
        "timesteps": torch.arange(length).expand(rows, -1).clone(),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
    }


# The maker of each argument, called with the request and the argument's name.
OTHERS: dict[str, Callable[[Request, str], Variant]] = {
    "bbox": _boxes,
    "past_values": _series,
    "states": _states,
    "qformer_input_ids": lambda request, argument: {argument: make_tokens(request)},
}


_BANDS = (
    "num_mel_bins",
    "feature_projection_input_dim",
    "input_feat_per_channel",
    "n_mels",
    "num_mel_channels",
    "feature_size",
    "mel_bins",
    "input_feat_size",
    "input_dim",
)
_MASKS = ("feature_attention_mask", "input_features_mask", "audio_mel_mask")
_BOOLEAN = ("input_features_mask", "audio_mel_mask")
_STRIDES = ("conv_stride", "upsampling_ratios", "downsampling_ratios", "strides")


def spectrogram_variants(request: Request, argument: str) -> Iterator[Variant]:
    """Yield spectrograms as one argument of a model, bands first or last, with the masks that it takes."""
    # Some convolutions have as many channels as there are bands.
    channels = request.setting("subsampling_conv_channels", tower="audio") or [80]
    bands = request.setting(*_BANDS, tower="audio") or channels[0]
    positions = request.setting("max_source_positions", tower="audio")
    lengths = [4 * request.length + 16, 8 * request.length]
    shapes: list[tuple[int, ...]] = [(length, bands) for length in lengths]
    shapes += [(bands, length) for length in lengths]
    if isinstance(positions, int) and positions <= 3000:
        # Whisper requires 30 seconds; its encoder halves the number of frames.
        shapes.insert(0, (bands, 2 * positions))
    frames = request.setting("max_length", tower="audio")
    if isinstance(frames, int) and "time_stride" in request.model.config.to_dict():
        shapes.insert(0, (frames, bands))
    for shape in shapes:
        values = request.random(request.batch_size, *shape)
        yield {argument: values, **_masks(request, max(shape))}


def waveform_variants(request: Request, argument: str) -> Iterator[Variant]:
    """Yield waveforms as one argument of a model, ``[batch_size, samples]`` or ``[batch_size, channels, samples]``."""
    config = request.model.config
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if isinstance(kernels, (list, tuple)) and isinstance(strides, (list, tuple)):
        samples = request.length
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            samples = (samples - 1) * stride + kernel
        yield {argument: request.random(request.batch_size, samples)}
        return
    if request.setting("time_stride") is not None:
        yield from spectrogram_variants(request, argument)
        return
    hop = request.setting("hop_length")
    if not isinstance(hop, int):
        found = request.setting(*_STRIDES)
        hop = prod(found) if isinstance(found, (list, tuple)) and found else 320
    samples = 2 * request.length * hop
    channels = request.setting("audio_channels", "num_channels") or 1
    yield {argument: request.random(request.batch_size, channels, samples)}
    yield {argument: request.random(request.batch_size, samples), **_masks(request, samples)}
    yield from spectrogram_variants(request, argument)


def _masks(request: Request, frames: int) -> Variant:
    """Return masks of frames that a model asks for, or that count the features of its sound."""
    needed = required_arguments(request.model.forward)
    wanted = [name for name in _MASKS if name in request.accepted] + ["attention_mask"] * ("attention_mask" in needed)
    kinds = {name: torch.bool if name in _BOOLEAN else torch.long for name in wanted}
    return {name: torch.ones(request.batch_size, frames, dtype=kind) for name, kind in kinds.items()}
