"""What a task makes of examples and of a model's outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.lightning.labels import encode_labels

__all__ = ["SequenceClassification"]

_TEXT_COLUMNS = ("text", "text_pair")


class SequenceClassification:
    """One label for a text or for a pair of texts."""

    metric_name = "accuracy"

    def blueprint(self, name_or_path: str) -> PreTrainedModel:
        """Return the model without its weights, on the meta device: enough to count its heads.

        Raises:
            ValueError: transformers does not know the model, or has no classifier on top of it.
        """
        try:
            config = AutoConfig.from_pretrained(name_or_path)
            with torch.device("meta"):
                model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"model.name={name_or_path} cannot be used to classify texts: {reason}") from error
        return model

    def check_checkpointing(self, blueprint: PreTrainedModel, *, compiled: bool) -> None:
        """Make sure that a model can compute its activations again instead of keeping them.

        Raises:
            ValueError: transformers cannot do that with models of this class, or torch not in a compiled one.
        """
        if compiled:
            raise ValueError(
                "gradient_checkpointing=true does not go with compile=true: torch cannot take gates through both; "
                "choose one of them."
            )
        if not blueprint.supports_gradient_checkpointing:
            raise ValueError(
                f"gradient_checkpointing=true: {type(blueprint).__name__} does not offer it; leave it out, and take a "
                "smaller data.batch_size with trainer.accumulate_grad_batches=2 instead."
            )

    def save_memory(self, model: PreTrainedModel) -> None:
        """Let a model compute its activations again in the backward pass instead of keeping them, in place."""
        # The name that transformers 5 began with is deprecated by now.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        # The other kind loses gradients where a layer's inputs need none, and does not go with compiling.
        enable({"use_reentrant": False})

    def readable_length(self, blueprint: PreTrainedModel, max_length: int) -> int:
        """Return how many tokens of a text to use: ``max_length``, or as many as the model has positions for."""
        positions = getattr(blueprint.config, "max_position_embeddings", None)
        for name, module in blueprint.named_modules():
            # RoBERTa and alike count positions from the padding index on.
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                positions -= module.padding_idx + 1
        return max_length if positions is None else min(max_length, positions)

    def prepare(
        self, splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, max_length: int
    ) -> tuple[DatasetDict, list[str]]:
        """Tokenise examples.

        Args:
            splits: Columns ``text``, ``label`` and possibly ``text_pair``.
            tokenizer: The model's tokenizer.
            max_length: Number of tokens after which an example is cut off.

        Returns:
            Splits with the model's input columns and ``labels``, and the names of the classes.
        """
        encoded, label_names = encode_labels(splits)
        _check_texts(encoded)

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            texts = [[str(text) for text in batch[column]] for column in _TEXT_COLUMNS if column in batch]
            tokens = tokenizer(*texts, truncation=True, max_length=max_length)
            return {**tokens, "labels": batch["label"]}

        tokens = encoded.map(
            tokenize,
            batched=True,
            remove_columns=encoded["train"].column_names,
            cache_file_names={split: _cache_file(table, tokenize) for split, table in encoded.items()},
            desc="Tokenising",
        )
        return tokens, label_names

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
        """Return what makes a batch of examples, padded to the longest of them."""
        return DataCollatorWithPadding(tokenizer)

    def load_tokenizer(self, name_or_path: str) -> PreTrainedTokenizerBase:
        """Load a model's tokenizer; one without a padding token, as decoders have it, pads with its last token."""
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name_or_path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def load_model(
        self, name_or_path: str, *, label_names: list[str], pad_token_id: int, **options: Any
    ) -> PreTrainedModel:
        """Load a pre-trained model with a new classification head.

        Args:
            name_or_path: What ``from_pretrained`` takes.
            label_names: Names of the classes.
            pad_token_id: Number of the padding token; decoders find the end of a text by it.
            options: Further arguments of ``from_pretrained``.
        """
        config = AutoConfig.from_pretrained(
            name_or_path,
            num_labels=len(label_names),
            id2label=dict(enumerate(label_names)),
            label2id={name: number for number, name in enumerate(label_names)},
            problem_type="single_label_classification",
            pad_token_id=pad_token_id,
        )
        # In full precision, whatever it was stored in: small steps are lost in half of it. The trainer's precision
        # decides what is computed in.
        options = {"dtype": torch.float32, **options}
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, config=config, **options
        )
        return model

    def load_teacher(self, teacher: str | None) -> PreTrainedModel:
        """Load a model that was fine-tuned before, with the head that it has.

        Args:
            teacher: What ``from_pretrained`` takes.

        Raises:
            ValueError: It is no such model.
        """
        assert teacher is not None, "null means that the run trains it"
        try:
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
                teacher, dtype=torch.float32, use_safetensors=True
            )
        except ValueError as error:
            raise ValueError(f"distillation.teacher={teacher} does not load: {error}") from error
        return model

    def metrics(self, label_names: list[str]) -> MetricCollection:
        """Return the metrics of this task; :attr:`metric_name` is the one to report."""
        return MetricCollection({"accuracy": MulticlassAccuracy(num_classes=len(label_names), average="micro")})

    def predict(self, outputs: Any) -> torch.Tensor:
        """Return what the metrics compare with the labels, ``[batch, classes]``."""
        logits: torch.Tensor = outputs.logits
        return logits.float()


def _cache_file(table: Dataset, function: Callable[..., Any]) -> str | None:
    """Name a file to keep the results of a function in where ``datasets`` would not: for tables from no file."""
    if table.cache_files:
        return None
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "head-gating"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{Hasher.hash((table._fingerprint, function))}.arrow")


def _check_texts(splits: DatasetDict) -> None:
    for split, table in splits.items():
        for column in _TEXT_COLUMNS:
            row = (
                next((i for i, text in enumerate(table[column][:]) if text is None), None)
                if column in table.features
                else None
            )
            if row is not None:
                raise ValueError(f"The {split} data has no {column} in row {row + 1}. Fill it in, or remove the row.")
