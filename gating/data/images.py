"""Images as the pixel values that a model takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, Image
from transformers import AutoImageProcessor, ImageProcessingMixin, PreTrainedConfig, PreTrainedModel

from gating.errors import InputError, loading
from gating.models.sources import ModelSource

try:
    from transformers import ViTImageProcessorPil
except ImportError:  # Before transformers 5.5, when that name did not tell it apart from torchvision's.
    from transformers import ViTImageProcessor as ViTImageProcessorPil  # type: ignore[assignment]

_IS_OLD = ViTImageProcessorPil.__name__ == "ViTImageProcessor"
# Number of channels -> Pillow's mode.
_MODES = {1: "L", 3: "RGB"}


def load_image_processor(source: ModelSource, meta_model: PreTrainedModel) -> ImageProcessingMixin:
    """Load a model's image processor, or create one with the image size and channels of a new model."""
    if source.processor is None:
        config = vision_config(meta_model)
        height, width = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
        middle = [0.5] * config.num_channels
        # The arithmetic of Pillow is the same on every machine, unlike that of torchvision.
        return ViTImageProcessorPil(size={"height": height, "width": width}, image_mean=middle, image_std=middle)
    with loading(f"The image processor of {source.title}", remedy="Name another one with model.tokenizer=..."):
        loaded: ImageProcessingMixin = AutoImageProcessor.from_pretrained(
            source.processor, revision=source.processor_revision
        )
    return loaded


def vision_config(meta_model: PreTrainedModel) -> PreTrainedConfig:
    """Return the vision part of a model's configuration."""
    config: PreTrainedConfig = getattr(meta_model.config, "vision_config", meta_model.config)
    return config


def transform_images(table: Dataset, processor: Any, *, num_channels: int, where: str) -> Dataset:
    """Return a table whose ``image`` and ``label`` become ``pixel_values`` and ``labels`` when examples are read.

    Images, encoded or paths of files, become grayscale for 1 channel and RGB for 3. Those of 16 bits per channel are
    scaled to 8, since Pillow would clip them; other deep ones are refused.
    """
    feature = table.features["image"]
    if getattr(feature, "dtype", "").endswith("string"):
        missing = next((path for path in table["image"] if not Path(path).is_file()), None)
        if missing is not None:
            raise FileNotFoundError(f"The {where} data names the image {missing}: there is no such file.")
    with loading(f"The first image of the {where} data", remedy="Their column is data.image_column=..."):
        images = table if isinstance(feature, Image) else table.cast_column("image", Image())
        transformed = images.with_transform(_PixelTransform(processor, mode=_MODES.get(num_channels)))
        transformed[0]
    return transformed


def _to_8_bits(image: Any) -> Any:
    """Return an image with 8 bits per channel; Pillow would clip a 16-bit image."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() >= 2**16:
        raise InputError(f"An image has pixels up to {pixels.max()} (mode {image.mode}): save it with 8 or 16 bits.")
    return PIL.Image.fromarray((pixels.astype(np.uint16) >> 8).astype(np.uint8))


class _PixelTransform:
    """Transform of images to pixel values; a class, because worker processes must pickle it."""

    def __init__(self, processor: Any, *, mode: str | None) -> None:
        self._processor = processor
        self._mode = mode

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        images = [image if self._mode is None else _to_8_bits(image).convert(self._mode) for image in batch["image"]]
        options = {}
        if _IS_OLD and self._mode == "L":  # Processors of old take no images without the axis of channels.
            images, options = [np.asarray(image)[..., None] for image in images], {"input_data_format": "channels_last"}
        pixels = self._processor(images, return_tensors="pt", **options)["pixel_values"]
        return {"pixel_values": list(pixels), "labels": list(batch["label"])}
