"""``gating.prune``: a smaller model in one call, trained by the trainers of this folder."""

import tempfile
from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import DataCollatorForLanguageModeling, TrainingArguments

from gating.errors import InputError
from gating.integrations.budgets import check_budget
from gating.integrations.trainer import GatedTrainer
from gating.integrations.wrappers import is_sentence_model
from gating.objectives.distillation import Distillation
from gating.proof.outputs import evaluating

__all__ = ["prune"]

# Names of the columns of labels and scores.
_LABELS = ("label", "labels", "score", "scores")
# Examples of a step, least number of steps of a training, largest number of epochs above it, and tokens of a text.
_BATCH_SIZE, _LEAST_STEPS, _EPOCHS, _LENGTH = 16, 200, 3, 512
Model = TypeVar("Model", bound=nn.Module)


def prune(
    model: Model,
    data: Any,
    *,
    speedup: float | None = None,
    keep: float | None = None,
    num_heads: int | None = None,
    tokenizer: Any = None,
    args: TrainingArguments | None = None,
    **options: Any,
) -> Model:
    """Return a compact copy of a classifier, a decoder or a ``SentenceTransformer``, trained on some texts.

    A decoder learns the next tokens. Others learn from the labels in the data; without labels, a classifier learns its
    own logits, and an embedding model its own embeddings of the texts. Heads and neurons have gates, and with
    ``num_heads`` heads alone. For anything else, call a trainer, such as :class:`gating.integrations.GatedTrainer`.

    Args:
        model: The dense model; unchanged, but for its device.
        data: Texts, or a ``datasets.Dataset`` with columns of texts, and maybe ``label``: numbers of classes, or their
            names in the model's configuration.
        speedup: Time of the dense model over that of the compact one, measured here; give one of the three budgets.
        keep: Share of the cost of all heads and neurons that stays.
        num_heads: Number of heads that stay.
        tokenizer: Tokenizer of the model; a ``SentenceTransformer`` has its own.
        args: Training arguments; by default 3 epochs, at least 200 steps, in a temporary folder and without reports.
        options: Keyword arguments of the trainer, such as ``recovery`` and ``gate_options``.

    Raises:
        ValueError: Not one budget is given, it cannot be kept or reached, the model has no attention heads, or it reads
            and writes texts, such as T5.
    """
    budget = {"speedup": speedup, "keep": keep, "num_heads": num_heads}
    check_budget(**budget)
    if isinstance(data, str):
        raise InputError("data= is a single text, and its characters would be texts: give a list of texts.")
    units = "heads" if num_heads is not None else ["heads", "neurons"]
    options = {"gate_options": {"units": units}, **budget, **options}
    if isinstance(data, Sequence) and data and isinstance(data[0], str):
        from datasets import Dataset

        data = Dataset.from_dict({"text": list(data)})
    # It teaches the copy, or embeds the texts.
    with evaluating(model), tempfile.TemporaryDirectory() as folder:
        if is_sentence_model(model):
            cls, of_arguments, of_trainer = _sentence_trainer(model, data)
        else:
            cls, of_arguments, of_trainer = _text_trainer(model, data, tokenizer)
        if args is None:
            steps = max(_LEAST_STEPS, _EPOCHS * len(of_trainer["train_dataset"]) // _BATCH_SIZE)
            args = of_arguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=_BATCH_SIZE,
                warmup_steps=0.1,
                save_strategy="no",
                report_to="none",
                dataloader_pin_memory=torch.accelerator.is_available(),
            )
        trainer = cls(model=deepcopy(model), args=args, **{**of_trainer, **options})
        trainer.train()
        trainer.finalize()
        if options.get("recovery") != 0:
            trainer.train()
        compact: Model = trainer.compact()
    return compact


def _text_trainer(model: Any, data: Any, tokenizer: Any) -> tuple[type[Any], type[Any], dict[str, Any]]:
    """Return a trainer of a classifier or decoder, the class of its arguments, and its keyword arguments."""
    config, is_decoder = model.config, model.can_generate()
    if is_decoder and config.is_encoder_decoder:  # It would learn to copy its input.
        raise InputError(f"{type(model).__name__} reads and writes texts: give pairs of them to a trainer.")
    if tokenizer is None:
        raise InputError(f"Texts for {type(model).__name__} need its tokenizer: give tokenizer=.")
    strings = [name for name in data.column_names if getattr(data.features[name], "dtype", "") == "string"]
    texts = ["text"] if "text" in strings else [name for name in strings if name not in _LABELS][:2]
    labels = [name for name in data.column_names if name in _LABELS and not is_decoder]
    length = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", _LENGTH), _LENGTH)
    data = data.map(
        lambda rows: tokenizer(*(rows[name] for name in texts), truncation=True, max_length=length),
        batched=True,
        remove_columns=[name for name in data.column_names if name not in labels],
    )
    for name in set(strings) & set(labels):
        numbers = [config.label2id[one] for one in data[name]]
        data = data.remove_columns(name).add_column("labels", numbers)
    options: dict[str, Any] = {"train_dataset": data, "processing_class": tokenizer}
    if is_decoder:
        padded = copy(tokenizer)
        padded.pad_token = padded.pad_token or padded.eos_token
        options["data_collator"] = DataCollatorForLanguageModeling(padded, mlm=False)
    elif not labels:
        # Models compute a loss from labels alone; this one has no weight.
        zero = 0.0 if config.num_labels == 1 else 0
        label = [0.0] * config.num_labels if config.problem_type == "multi_label_classification" else zero
        options["train_dataset"] = data.add_column("labels", [label] * len(data))
        options |= {"teacher": model, "distillation": Distillation(weight=1.0)}
    return GatedTrainer, TrainingArguments, options


def _sentence_trainer(model: Any, data: Any) -> tuple[type[Any], type[Any], dict[str, Any]]:
    """Return a trainer of an embedding model, the class of its arguments, and its keyword arguments."""
    from sentence_transformers import SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss

    from gating.embedding.losses import EmbeddingDistance
    from gating.integrations.sentence_trainers import GatedSentenceTransformerTrainer

    loss: Any = CoSENTLoss if any(name in data.column_names for name in _LABELS) else MultipleNegativesRankingLoss
    if len(data.column_names) == 1:
        texts = data[data.column_names[0]]
        data, loss = data.add_column("label", model.encode(list(texts)).tolist()), EmbeddingDistance
    return GatedSentenceTransformerTrainer, SentenceTransformerTrainingArguments, {"train_dataset": data, "loss": loss}
