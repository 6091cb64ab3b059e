"""What a task has to offer, so that one command and one Lightning module can train it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from datasets import DatasetDict
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from gating.compact.save import Processor
from gating.data.batches import Batch
from gating.models.sources import ModelSource
from gating.report.score import Score

__all__ = ["Prepared", "Task"]


@dataclass(frozen=True)
class Prepared:
    """Examples that are ready to train on, and what follows from them.

    Attributes:
        splits: ``train``, ``validation`` and possibly ``test``, with what ``collate`` reads; texts have ``input_ids``.
        collate: What makes a batch of a list of examples: the model's keyword arguments, and values for the metrics,
            whose names begin with ``metric_``.
        metrics: The metrics of the task.
        score: Which of them to report.
        config: Values that the model's configuration must have, such as the names of classes.
        final_metrics: Metrics that take longer, such as those of text that a model writes: besides the others, but at
            the end of each phase only.
        final_score: Which of these to report.
    """

    splits: DatasetDict
    collate: Callable[[list[Any]], Batch]
    metrics: MetricCollection
    score: Score
    config: dict[str, Any] = field(default_factory=dict)
    final_metrics: MetricCollection | None = None
    final_score: Score | None = None

    @property
    def all_metrics(self) -> MetricCollection:
        """All metrics, for the end of a phase."""
        return MetricCollection(
            {**dict(self.metrics.items()), **dict((self.final_metrics or {}).items())}, compute_groups=False
        )


class Task(Protocol):
    """What is learned: the kind of model, how examples become batches, and how answers are judged.

    The parameters of a task itself are the settings ``task.NAME``; those of its ``prepare``, ``data.NAME``.
    """

    auto_class: type

    def load_processor(self, source: ModelSource, blueprint: PreTrainedModel, splits: DatasetDict) -> Processor:
        """Return what turns raw examples into the model's inputs; the compact model is saved with it.

        Args:
            source: Where the model comes from.
            blueprint: The model without its weights, for its sizes.
            splits: The data, for what is learned from them.
        """

    # Tasks add keyword arguments, the settings of the data that they take.
    prepare: Callable[..., Prepared]
    """Turn raw examples into what is trained on: ``prepare(examples, processor, blueprint, *, ...)``."""

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare what the model answered with what is right.

        Args:
            metrics: What counts.
            batch: A batch of ``collate``, on the model's device.
            outputs: What the model made of it.
            model: The model, for tasks that let it generate.
        """
