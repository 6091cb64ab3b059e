"""Image classification: one label for an image."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict
from torchmetrics import MetricCollection
from transformers import AutoModelForImageClassification, DefaultDataCollator, ImageProcessingMixin, PreTrainedModel

from gating.data.batches import Batch
from gating.data.columns import find_column, take_columns
from gating.data.examples import Examples
from gating.data.images import load_image_processor, transform_images, vision_config
from gating.data.labels import LABEL_COLUMNS, encode_labels
from gating.data.text.tokens import check_no_nulls
from gating.models.sources import ModelSource
from gating.tasks.base import Prepared
from gating.tasks.metrics.baselines import Baseline, constant_logits, log_frequencies
from gating.tasks.metrics.classes import build_class_metrics, choose_class_metrics, class_config

__all__ = ["ImageClassification"]

_IMAGE_COLUMNS = ("image", "img")


class ImageClassification:
    """Classification of images."""

    auto_class = AutoModelForImageClassification
    has_classes = True

    def __init__(self, metrics: Sequence[Any] | Mapping[str, Any] | None = None, score: str | None = None) -> None:
        """Store the metrics.

        Args:
            metrics: Names of :func:`gating.tasks.metrics.classes.class_metrics`, or metrics, or their classes by name;
                those of the data, or accuracy, if None.
            score: Name of the metric by which runs are compared; the first if None.

        Raises:
            InputError: A name is unknown, or a metric cannot be created.
        """
        self._metrics = choose_class_metrics(metrics, score)

    def load_processor(
        self, source: ModelSource, blueprint: PreTrainedModel, splits: DatasetDict
    ) -> ImageProcessingMixin:
        """Load the image processor, or create one for a new model."""
        return load_image_processor(source, blueprint)

    def prepare(
        self,
        examples: Examples,
        processor: ImageProcessingMixin,
        blueprint: PreTrainedModel,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> Prepared:
        """Encode labels; images are decoded and transformed when examples are read.

        Raises:
            ValueError: A column is missing, or images or labels cannot be used.
        """
        columns = {
            "image": find_column(examples.splits, image_column, _IMAGE_COLUMNS),
            "label": find_column(examples.splits, label_column, (*LABEL_COLUMNS, "fine_label")),
        }
        splits, label_names = encode_labels(take_columns(examples.splits, columns))
        check_no_nulls(splits, ["image"])
        metrics, score = build_class_metrics(
            self._metrics, examples.metrics or ("accuracy",), num_classes=len(label_names)
        )
        channels = getattr(vision_config(blueprint), "num_channels", 3)
        transformed = {
            split: transform_images(table, processor, num_channels=channels, where=split)
            for split, table in splits.items()
        }
        return Prepared(
            splits=DatasetDict(transformed),
            collate=DefaultDataCollator(),
            metrics=metrics,
            score=score,
            config={**class_config(label_names), "problem_type": "single_label_classification"},
            baseline=Baseline(
                "majority class", log_frequencies(splits["train"], "label", size=len(label_names)), constant_logits
            ),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the class with the largest logit to the label."""
        metrics.update(outputs["logits"].float(), batch["labels"])
