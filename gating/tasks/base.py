"""Protocol of tasks: the class of model, how examples become batches, and how predictions are scored; common parts."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from datasets import DatasetDict
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import DefaultDataCollator, PreTrainedModel, PreTrainedTokenizerBase

from gating.compact.save import Processor
from gating.data.examples import Batch
from gating.data.tokenizers import Frame, load_or_train_tokenizer
from gating.models.sources import ModelSource
from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics, Metrics

# A text that a model generated: ``prompt`` or ``source``, ``written``, and ``right`` if there is a reference.
Sample = dict[str, str]


@dataclass(frozen=True)
class Baseline:
    """The best prediction without a model: the same for each example or word, from the training labels.

    Attributes:
        name: Name for tables, such as ``majority class``.
        logits: Logits of one example or word, ``[num_labels]``.
        undefined: Values of metrics that a constant leaves undefined, such as 0 for a correlation.
    """

    name: str
    logits: Tensor
    undefined: Mapping[str, float] = field(default_factory=dict)

    def outputs(self, labels: Tensor) -> dict[str, Tensor]:
        """Return the outputs of a model that always predicts this, for labels of any shape."""
        return {"logits": self.logits.to(labels.device).expand(*labels.shape, -1)}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Data of a task, ready for training.

    A batch of ``collate`` has the keyword arguments of the model's forward pass; its targets, ``labels`` or
    ``start_positions`` and ``end_positions``, with -100 for tokens without a label; and values for metrics alone, whose
    names begin with ``metric_``, or for the task alone, with ``task_``.

    Attributes:
        splits: ``train``, ``validation`` and optionally ``test``; texts have ``input_ids``, by whose lengths examples
            are grouped.
        metrics: Metrics of every validation and test, by name.
        score: The metric to report.
        collate: Function that collates a list of examples into a batch; it stacks values of equal shape by default.
        config: Values that the model's configuration must have, such as ``num_labels``.
        final_metrics: Slower metrics, such as those of generated text, for the end of each phase.
        final_score: The metric to report of these.
        baseline: A prediction without a model, which scores are compared with; None where none makes sense.
    """

    splits: DatasetDict
    metrics: MetricCollection
    score: Score
    collate: Callable[[list[Any]], Batch] = field(default_factory=DefaultDataCollator)
    config: dict[str, Any] = field(default_factory=dict)
    final_metrics: MetricCollection | None = None
    final_score: Score | None = None
    baseline: Baseline | None = None

    @property
    def all_metrics(self) -> MetricCollection:
        """All metrics, for the end of a phase."""
        final = {} if self.final_metrics is None else dict(self.final_metrics.items())
        return MetricCollection({**dict(self.metrics.items()), **final}, compute_groups=False)


class Task(Protocol):
    """A class of model, and how examples become batches and predictions are scored.

    The arguments of ``__init__`` are the settings ``task.NAME``, and the keyword arguments of ``prepare`` are settings
    ``data.NAME``. A task with ``has_classes = True`` draws validation data stratified by label. :class:`WritesText` and
    :class:`HasLoss` are further methods of some tasks.

    Attributes:
        auto_class: Auto class of transformers, such as ``AutoModelForSequenceClassification``.
    """

    auto_class: type

    def load_processor(self, source: ModelSource, meta_model: PreTrainedModel, splits: DatasetDict) -> Processor:
        """Return the tokenizer or image processor; a new tokenizer is trained on the splits."""

    # A method, which adds keyword arguments of its own.
    prepare: Callable[..., Prepared]
    """Select and encode the columns of the data: ``prepare(examples, processor, meta_model, *, ...) -> Prepared``.

    ``examples`` are :class:`gating.data.examples.Examples`, ``processor`` is the result of ``load_processor``, and
    ``meta_model`` is the model without weights. Errors of users' data are ``gating.errors.InputError``.
    """

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Update ``metrics`` or ``all_metrics`` with the model's outputs for a batch, or with texts it generates."""


@runtime_checkable
class HasLoss(Protocol):
    """A task with a loss of its own, whose models have no head and are good without training, such as embeddings."""

    def adapt(self, model: PreTrainedModel) -> None:
        """Adapt a loaded model to the loss, in place: freeze the weights that it does not depend on."""

    def loss(self, outputs: Mapping[str, Any], batch: Batch, *, model: PreTrainedModel) -> Tensor:
        """Return the loss of the model's outputs for a batch, a scalar; the model is for further inputs."""


@runtime_checkable
class WritesText(Protocol):
    """A task whose models generate text."""

    def write_samples(
        self, model: PreTrainedModel, processor: PreTrainedTokenizerBase, splits: DatasetDict
    ) -> list[Sample]:
        """Generate samples for the report, with a finished model in evaluation mode; prompts are from the splits."""


class MetricTask:
    """Base of tasks whose metrics are chosen by settings.

    Attributes:
        known_metrics: Names of the task's metrics.
    """

    known_metrics: ClassVar[Collection[str]]

    def __init__(self, metrics: Metrics | None = None, score: str | None = None) -> None:
        """Store the metrics.

        Args:
            metrics: Names of the task's metrics; or by name metrics, or their classes, and None for the metric of the
                task. Those of the data, or the usual ones of the task, if None.
            score: Name of the metric by which runs are compared; the first if None.
        """
        self._metrics = ChosenMetrics(metrics, score, known=self.known_metrics)


class TextTask(MetricTask):
    """Base of tasks of texts, whose tokenizer is loaded, or trained for a new model.

    Attributes:
        frame: Special tokens that a new tokenizer adds to a text: at ``both`` ends, at its ``end``, or ``none``.
    """

    frame: Frame = "both"

    def load_processor(
        self, source: ModelSource, meta_model: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer, or train one for a new model."""
        return load_or_train_tokenizer(source, meta_model, splits, frame=self.frame)
