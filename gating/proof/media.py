"""Random images, videos, sounds and rarer inputs for a model, in the forms that models take them in."""

from collections.abc import Callable, Iterator
from math import prod

import torch

from gating.proof.input_sizes import Request, Variant, make_tokens, required_arguments

# Height and width where the configuration has none: models without a fixed size.
_SIDE = 64


def image_variants(request: Request, argument: str) -> Iterator[Variant]:
    """Yield images as one argument of a model, with the arguments that describe them, in all forms that may fit.

    The forms are: patches with a grid of their number; padded patches with their shapes; images
    ``[batch_size, channels, height, width]``; several of them for each example; and tiles of them.
    """
    accepted = request.accepted
    grid = next((name for name in ("image_grid_thw", "grid_thw") if name in accepted), None)
    if grid is not None:
        yield from _grids(request, argument, grid)
    if "image_position_ids" in accepted:
        yield _positioned_patches(request, argument)
    if "spatial_shapes" in accepted:
        yield _padded_patches(request, argument)
    if argument == "flattened_patches":
        yield {argument: _numbered_patches(request)}
        return
    if argument == "hidden_states":
        return
    channels, (height, width) = _channels(request), _size(request)
    image = request.random(request.batch_size, channels, height, width)
    frames = request.setting("num_frames", "frames_per_clip", tower="vision")
    videos = [{argument: request.random(request.batch_size, frames, channels, height, width)}] if frames else []
    pinpoints = request.setting("image_grid_pinpoints")
    if pinpoints and "image_sizes" in accepted:
        yield _resolution(request, argument, *pinpoints[0])
    if "aspect_ratio_ids" in accepted:
        yield _tiles(request, argument)
    # A model with a number of frames may take single images, too.
    if not any(hasattr(request.model.config, name) for name in ("image_token_id", "image_token_index")):
        yield from videos
    sizes = {"image_sizes": torch.tensor([[height, width]] * request.batch_size)} if "image_sizes" in accepted else {}
    yield {argument: image, **sizes}
    if sizes:
        yield {argument: image}
    if "image_attention_mask" in accepted:
        sizes["image_attention_mask"] = torch.ones(request.batch_size, request.length, 1, dtype=torch.long)
    yield {argument: image.unsqueeze(1), **sizes}
    yield {argument: torch.stack([image, image.flip(0)], 1), **sizes}


def video_variants(request: Request, argument: str) -> Iterator[Variant]:
    """Yield videos as one argument of a model, ``[batch_size, frames, channels, height, width]`` or patches."""
    if "video_grid_thw" in request.accepted:
        yield from _grids(request, argument, "video_grid_thw")
    channels, (height, width) = _channels(request), _size(request)
    frames = request.setting("num_frames", "frames_per_clip", "max_num_frames", tower="vision") or 4
    yield {argument: request.random(request.batch_size, frames, channels, height, width)}
    yield {argument: request.random(request.batch_size, channels, frames, height, width)}


def _channels(request: Request) -> int:
    names = ("num_channels", "in_channels", "in_chans", "num_input_channels", "image_channels")
    found = request.setting(*names, tower="vision")
    return found if isinstance(found, int) else 3


def _size(request: Request) -> tuple[int, int]:
    """Return height and width; some configurations have a list, a table, or none for images of any size."""
    size = request.setting("image_size", "img_size", tower="vision")
    if isinstance(size, dict):
        size = list(size.values())
    if isinstance(size, (list, tuple)):
        height, width = (*size, *size)[:2]
        return int(height), int(width)
    return (size, size) if isinstance(size, int) and size else (_SIDE, _SIDE)


def _patch_size(request: Request) -> int:
    size = request.setting("patch_size", "spatial_patch_size", tower="vision") or 16
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _grids(request: Request, argument: str, grid: str) -> Iterator[Variant]:
    """Yield flat patches of one image for each example, ``[num_patches, patch]``, with their numbers as a grid."""
    patch, temporal = _patch_size(request), request.setting("temporal_patch_size", tower="vision") or 1
    merge = request.setting("spatial_merge_size", "merge_size", tower="vision") or 2
    side = 2 * (merge if isinstance(merge, int) else 2)
    count = 2 if grid == "video_grid_thw" else 1
    grids = torch.tensor([[count, side, 2 * side]] * request.batch_size)
    features = _channels(request) * patch * patch
    extra: Variant = {grid: grids}
    for name in ("merge_sizes", "image_merge_sizes"):
        if name in request.accepted:
            extra[name] = torch.full((request.batch_size,), side // 2)
    for width in dict.fromkeys((features * temporal, features)):
        yield {argument: request.random(int(grids.prod(1).sum()), width), **extra}
    channels = _channels(request)
    yield {argument: request.random(int(grids.prod(1).sum()), channels, patch, patch), **extra}


def _positioned_patches(request: Request, argument: str) -> Variant:
    """Return patches ``[batch_size, num_patches, patch]`` with their columns and rows, which are pooled in squares."""
    patch, side = _patch_size(request), 2 * (request.setting("pooling_kernel_size", tower="vision") or 1)
    places = torch.tensor([[column, row] for row in range(side) for column in range(side)])
    values = request.random(request.batch_size, side * side, _channels(request) * patch * patch)
    return {argument: values, "image_position_ids": places.expand(request.batch_size, -1, -1).clone()}


def _padded_patches(request: Request, argument: str) -> Variant:
    """Return patches ``[batch_size, num_patches, patch]`` of images of other shapes, with their masks and shapes."""
    patch, side = _patch_size(request), 4
    shapes = torch.tensor([[side, side + 2 * (index % 2)] for index in range(request.batch_size)])
    most = int(shapes.prod(1).max())
    mask = torch.arange(most)[None] < shapes.prod(1)[:, None]
    values = request.random(request.batch_size, most, _channels(request) * patch * patch)
    return {argument: values, "pixel_attention_mask": mask.long(), "spatial_shapes": shapes}


def _numbered_patches(request: Request) -> torch.Tensor:
    """Return patches that begin with the numbers of their row and column, ``[batch_size, num_patches, 2 + patch]``."""
    patch = _patch_size(request)
    rows = torch.tensor([[row, column] for row in range(1, 4) for column in range(1, 5)]).float()
    values = request.random(request.batch_size, len(rows), _channels(request) * patch * patch)
    return torch.cat([rows.expand(request.batch_size, -1, -1), values], -1)


def _resolution(request: Request, argument: str, height: int, width: int) -> Variant:
    """Return one image for each example, of a resolution that a model divides into tiles, before them the whole."""
    side, rows = _size(request), request.batch_size
    number = 1 + (height // side[0]) * (width // side[1])
    tiles = request.random(rows, number, _channels(request), *side)
    return {argument: tiles, "image_sizes": torch.tensor([[height, width]] * rows)}


def _tiles(request: Request, argument: str) -> Variant:
    """Return one image for each example in as many tiles as its aspect ratio has, with that ratio's number."""
    tiles = request.setting("max_num_tiles", tower="vision") or 4
    size = _size(request)
    mask = torch.zeros(request.batch_size, 1, tiles, dtype=torch.long)
    mask[..., 0] = 1
    made: Variant = {
        argument: request.random(request.batch_size, 1, tiles, _channels(request), *size),
        "aspect_ratio_ids": torch.ones(request.batch_size, 1, dtype=torch.long),
        "aspect_ratio_mask": mask,
    }
    if "cross_attention_mask" in request.accepted:
        made["cross_attention_mask"] = mask[:, None].expand(-1, request.length, -1, -1).clone()
    return made


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
