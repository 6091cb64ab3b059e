"""Sentence embeddings: a model learns from its dense self, without labels, or from pairs of texts."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from datasets import DatasetDict
from pydantic import Field
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import AutoModel, PreTrainedModel

from gating.compact.files import read_config
from gating.compact.save import Processor
from gating.compensation.ranking import project
from gating.data.examples import Batch, Examples
from gating.data.tokens import load_tokenizer, truncation_length
from gating.embedding.losses import EmbeddingDistance
from gating.embedding.parts import SentenceHead, SentenceProcessor
from gating.errors import InputError
from gating.loader.modeling import RECORD_KEY
from gating.models.hub import locate
from gating.models.sources import ModelSource, Pretrained
from gating.tasks.base import MetricTask, Prepared
from gating.tasks.embedding_examples import (
    Kind,
    add_negations,
    collate_pairs,
    kind_of,
    read_examples,
    tokenize_examples,
)
from gating.tasks.embedding_teacher import add_embeddings, load_sentence_model
from gating.tasks.metrics.embeddings import METRICS, Embedded, build_embedding_metrics

Loss = Literal["distance", "cosine", "multiple_negatives", "projection"]

# The loss of each kind of training data.
_USUAL: dict[Kind, Loss] = {"texts": "distance", "scores": "cosine", "positives": "multiple_negatives"}


class Embedding(MetricTask):
    """Sentence embeddings of a model of sentence-transformers, with the pooling in its folder."""

    auto_class = AutoModel
    known_metrics = METRICS

    def __init__(
        self,
        loss: Loss | None = None,
        teacher: str | None = None,
        teacher_revision: str = "main",
        similarity_weight: Annotated[float, Field(ge=0)] = 5.0,
        negations: Annotated[float, Field(ge=0, le=1)] = 0.0,
        metrics: Sequence[str] | None = None,
        score: str | None = None,
    ) -> None:
        """Store the loss and the metrics; the settings are those of ``conf/task/embedding.yaml``."""
        super().__init__(metrics, score)
        self._loss, self._teacher = loss, teacher
        self._teacher_revision, self._negations = teacher_revision, negations
        self._loss_name: Loss = loss or _USUAL["texts"]
        # They are given embeddings in place of tokens.
        model = nn.Identity()
        self._losses: dict[Loss, nn.Module] = {
            "distance": EmbeddingDistance(model, similarity_weight),
            "cosine": CosineSimilarityLoss(model),  # type: ignore[arg-type]
            "multiple_negatives": MultipleNegativesRankingLoss(model),  # type: ignore[arg-type]
        }
        self._head: SentenceHead | None = None

    def load_processor(self, source: ModelSource, meta_model: PreTrainedModel, splits: DatasetDict) -> Processor:
        """Load the model's folder of sentence-transformers; of a compact model its tokenizer and pooling alone."""
        if not isinstance(source, Pretrained) or source.tokenizer is not None:
            raise InputError(
                f"task=embedding trains a model of sentence-transformers with its own tokenizer, not {source.title}: "
                "name one with model=pretrained model.name=FOLDER_OR_HUB_NAME, and leave out model.tokenizer."
            )
        place = locate(source.name, revision=source.revision)
        if Path(place).is_dir() and RECORD_KEY in read_config(Path(place)):
            self._head = SentenceHead.load(Path(place))
            return load_tokenizer(source)
        model = load_sentence_model(source.name, revision=source.revision, setting="model.name")
        self._head = SentenceHead(list(model)[1:])
        return SentenceProcessor(model)

    def prepare(
        self,
        examples: Examples,
        processor: Any,
        meta_model: PreTrainedModel,
        *,
        max_length: int = 128,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        label_column: str | None = None,
    ) -> Prepared:
        """Tokenize texts or pairs of texts, truncated to ``max_length`` tokens, and embed them with the teacher."""
        splits = read_examples(examples.splits, text_column, text_pair_column, label_column, loss=self._loss)
        kind = kind_of(splits["train"])
        self._loss_name = self._loss or _USUAL[kind]
        if self._loss_name not in ("distance", "projection", _USUAL[kind]):
            raise InputError(
                f"task.loss={self._loss_name} does not fit the training data, which are {kind}: cosine needs pairs "
                "with a score (data.label_column=...), and multiple_negatives pairs without one."
            )
        held_out = {kind_of(table) for split, table in splits.items() if split != "train"}
        if len(held_out) > 1:
            raise InputError(f"The validation and test data are {' and '.join(sorted(held_out))}: give both the same.")
        teacher = self._teacher_of(processor)
        if self._loss_name == "distance" and teacher is None:
            raise InputError(
                "task.loss=distance is the distance to a teacher, and there is none: give a dense model with "
                "task.teacher=FOLDER_OR_HUB_NAME, or pairs of texts with a loss of pairs."
            )
        if self._negations:
            if self._loss_name != "distance":
                raise InputError(f"task.negations={self._negations} has no effect without task.loss=distance.")
            splits["train"] = add_negations(splits["train"], self._negations)
        tokenizer = getattr(processor, "tokenizer", processor)
        # The package truncates texts to the length that is saved with the tokenizer.
        length = min(truncation_length(meta_model, max_length), tokenizer.model_max_length)
        tokens = tokenize_examples(splits, tokenizer, length)
        if teacher is not None:
            tokens = add_embeddings(splits, tokens, teacher, max_length=length, pairs=self._loss_name == "distance")
        present = held_out | ({"teacher"} if teacher is not None else set())
        metrics, score = build_embedding_metrics(self._metrics, present=present)
        return Prepared(splits=tokens, metrics=metrics, score=score, collate=partial(collate_pairs, tokenizer))

    def _teacher_of(self, processor: Any) -> Any:
        """Return the teacher; None without one."""
        if self._teacher == "none":
            return None
        if self._teacher is not None:
            return load_sentence_model(self._teacher, revision=self._teacher_revision, setting="task.teacher")
        return processor.model if isinstance(processor, SentenceProcessor) else None

    def adapt(self, model: PreTrainedModel) -> None:
        """Freeze BERT's own pooler, which embeddings do not depend on, in place; a teacher is followed without dropout.

        The configuration keeps its dropout for later trainings.
        """
        pooler = getattr(model, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)
        if self._loss_name != "distance":
            return
        for module in model.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, float) and ("dropout" in name or isinstance(module, nn.Dropout)):
                    setattr(module, name, 0.0)

    def loss(self, outputs: Mapping[str, Any], batch: Batch, *, model: PreTrainedModel) -> Tensor:
        """Return the loss of a batch, a scalar."""
        embedded = self._embed(outputs, batch, model=model)
        columns, labels, name = [embedded.texts, embedded.pairs], embedded.scores, self._loss_name
        if name == "projection":
            return project(embedded.texts) / len(embedded.texts)
        if name == "distance" and embedded.teacher is not None:
            columns, labels = [embedded.texts], embedded.teacher
        elif embedded.pairs is None:
            # Validation data without pairs, in a training on pairs without a teacher.
            return embedded.texts.new_full((), torch.nan)
        else:
            name = "multiple_negatives" if labels is None else "cosine"
        loss: Tensor = self._losses[name]([{"sentence_embedding": vectors} for vectors in columns], labels)
        return loss

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Add the embeddings of a batch to the metrics."""
        metrics.update(self._embed(outputs, batch, model=model))

    def embed(self, outputs: Mapping[str, Any], batch: Batch) -> Tensor:
        """Return the embeddings of a batch of tokens, ``[batch, width]``, from the outputs of the transformer."""
        assert self._head is not None
        embeddings: Tensor = self._head.to(batch["input_ids"].device)(outputs, batch["attention_mask"])
        return embeddings

    def _embed(self, outputs: Mapping[str, Any], batch: Batch, *, model: PreTrainedModel) -> Embedded:
        pairs = {name.removeprefix("task_pair_"): value for name, value in batch.items() if "task_pair_" in name}
        return Embedded(
            texts=self.embed(outputs, batch),
            pairs=self.embed(model(**pairs), pairs) if pairs else None,
            scores=batch.get("task_scores"),
            queries=batch["task_query"],
            documents=batch.get("task_document"),
            teacher=batch.get("task_embeddings"),
        )
