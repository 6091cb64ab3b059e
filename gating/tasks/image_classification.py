"""Image classification: one label for an image."""

from dataclasses import replace

from datasets import DatasetDict
from transformers import AutoModelForImageClassification, ImageProcessingMixin, PreTrainedModel

from gating.data.columns import find_column, take_columns
from gating.data.examples import Examples
from gating.data.images import load_image_processor, transform_images, vision_config
from gating.data.labels import LABEL_COLUMNS
from gating.data.tokens import check_no_nulls
from gating.models.sources import ModelSource
from gating.tasks.base import Prepared
from gating.tasks.sequence_classification import ClassTask

_IMAGE_COLUMNS = ("image", "img")


class ImageClassification(ClassTask):
    """Classification of images, with the metrics of :mod:`gating.tasks.metrics.labels`."""

    auto_class = AutoModelForImageClassification

    def load_processor(
        self, source: ModelSource, meta_model: PreTrainedModel, splits: DatasetDict
    ) -> ImageProcessingMixin:
        """Load the image processor, or create one for a new model."""
        return load_image_processor(source, meta_model)

    def prepare(
        self,
        examples: Examples,
        processor: ImageProcessingMixin,
        meta_model: PreTrainedModel,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> Prepared:
        """Encode labels; images are decoded and transformed when examples are read."""
        columns = {
            "image": find_column(examples.splits, image_column, _IMAGE_COLUMNS),
            "label": find_column(examples.splits, label_column, (*LABEL_COLUMNS, "fine_label")),
        }
        labeled = self.encode(take_columns(examples.splits, columns), examples)
        check_no_nulls(labeled.splits, ["image"])
        channels = getattr(vision_config(meta_model), "num_channels", 3)
        transformed = {
            split: transform_images(table, processor, num_channels=channels, where=split)
            for split, table in labeled.splits.items()
        }
        return replace(labeled, splits=DatasetDict(transformed))
