"""From images to the numbers that a model reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import transformers
from datasets import Dataset, Image
from transformers import AutoImageProcessor, ImageProcessingMixin, PreTrainedConfig, PreTrainedModel

from gating.errors import InputError, MissingFileError, explain, is_input_error
from gating.models.sources import ModelSource

__all__ = ["load_image_processor", "transform_images", "vision_config"]

# Pillow's arithmetic on every machine; the first versions 5 of transformers had nothing else.
_OLD = not hasattr(transformers, "ViTImageProcessorPil")
_Maker = transformers.ViTImageProcessor if _OLD else transformers.ViTImageProcessorPil

# White in 16 bits.
_LARGEST = 2**16 - 1

# Number of channels -> what Pillow calls it.
_MODES = {1: "L", 3: "RGB"}


def load_image_processor(source: ModelSource, blueprint: PreTrainedModel) -> ImageProcessingMixin:
    """Load a model's image processor; for a new model, make one of its image size and channels.

    Raises:
        ValueError: There is none, or it needs a package that is not installed.
    """
    if source.processor is None:
        config = vision_config(blueprint)
        height, width = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
        middle = [0.5] * config.num_channels
        made: ImageProcessingMixin = _Maker(
            size={"height": height, "width": width}, image_mean=middle, image_std=middle
        )
        return made
    try:
        loaded: ImageProcessingMixin = AutoImageProcessor.from_pretrained(
            source.processor, revision=source.processor_revision
        )
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"The image processor of {source.title} does not load: {reason} Name another one with model.tokenizer=..."
        ) from error
    return loaded


def vision_config(blueprint: PreTrainedModel) -> PreTrainedConfig:
    """Return the part of a model's configuration that is about images."""
    config: PreTrainedConfig = getattr(blueprint.config, "vision_config", blueprint.config)
    return config


def transform_images(table: Dataset, processor: Any, *, num_channels: int, where: str) -> Dataset:
    """Return a table of ``image`` and ``label`` that makes ``pixel_values`` and ``labels`` when examples are read.

    Args:
        table: Images, their files' content, or the paths of image files, and class numbers.
        processor: An image processor.
        num_channels: What images are converted to: 1, grey, or 3, colours.
        where: What the table is called, for messages.

    Raises:
        ValueError: The column holds no images.
        FileNotFoundError: A file does not exist.
    """
    feature = table.features["image"]
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        missing = next((path for path in table["image"] if not Path(path).is_file()), None)
        if missing is not None:
            raise MissingFileError(
                f"The {where} data names the image {missing}, and there is no such file; "
                "paths are looked up from the folder that the command runs in."
            )
        table = table.cast_column("image", Image())
    elif "binary" in getattr(feature, "dtype", "") or (isinstance(feature, dict) and "bytes" in feature):
        table = table.cast_column("image", Image())
    elif not isinstance(feature, Image):
        raise InputError(
            f"The column of images of the {where} data holds {feature}: neither images nor paths of files. Name the "
            "right one with data.image_column=..."
        )
    served = table.with_transform(_Reader(processor, mode=_MODES.get(num_channels)))
    try:
        served[0]
    except Exception as error:
        if is_input_error(error):
            raise
        raise InputError(
            f"The first image of the {where} data cannot be made what the model reads: {explain(error)} Correct the "
            "image, or name another image processor with model.tokenizer=..."
        ) from error
    return served


def _to_bytes(image: Any) -> Any:
    """Return an image of 8 bits; Pillow would cut off what is brighter in one of 16.

    Raises:
        ValueError: Its numbers have no range that is known.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > _LARGEST:
        raise InputError(
            f"An image has numbers from {pixels.min()} to {pixels.max()} (mode {image.mode}), whose white and black "
            "are not known: save it with 8 or 16 bits."
        )
    return PIL.Image.fromarray((pixels.astype(np.uint16) >> 8).astype(np.uint8))


class _Reader:
    """Makes a model's inputs of images; a class, so that loader processes of every kind can have it."""

    def __init__(self, processor: Any, *, mode: str | None) -> None:
        self._processor = processor
        self._mode = mode

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        images = [image if self._mode is None else _to_bytes(image).convert(self._mode) for image in batch["image"]]
        pixels = self._processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixels), "labels": list(batch["label"])}
