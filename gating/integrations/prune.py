"""``gating.prune``: a smaller model in one call, trained by the trainers of this folder."""

import tempfile
from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, TypeVar, overload

import torch
from torch import nn
from transformers import DataCollatorForLanguageModeling, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from gating.errors import InputError, InputTypeError, shorten
from gating.integrations.budgets import check_budget
from gating.integrations.trainer import GatedTrainer
from gating.integrations.untrained import prune_untrained
from gating.integrations.wrappers import base_model, is_sentence_model
from gating.plan import check_sizes
from gating.proof.input_sizes import accepted_arguments
from gating.proof.outputs import evaluating
from gating.teachers.distillation import Distillation

# Names of the columns of labels and scores.
_LABELS = ("label", "labels", "score", "scores")
# Examples of a step, least number of steps of a training, largest number of epochs above it, and tokens of a text.
_BATCH_SIZE, _LEAST_STEPS, _EPOCHS, _LENGTH = 16, 200, 3, 512
Model = TypeVar("Model", bound=nn.Module)


@overload
def prune(
    model: Model,
    data: Any,
    *,
    speedup: float | None = None,
    keep: float | None = None,
    num_heads: int | None = None,
    **options: Any,
) -> Model: ...


@overload
def prune(
    model: Model,
    data: Any,
    *,
    speedup: Sequence[float] | None = None,
    keep: Sequence[float] | None = None,
    num_heads: Sequence[int] | None = None,
    **options: Any,
) -> list[Model]: ...


def prune(
    model: Model,
    data: Any,
    *,
    speedup: float | Sequence[float] | None = None,
    keep: float | Sequence[float] | None = None,
    num_heads: int | Sequence[int] | None = None,
    train: bool = True,
    tokenizer: Any = None,
    args: TrainingArguments | None = None,
    **options: Any,
) -> Model | list[Model]:
    """Return a compact copy of a classifier, a decoder or a ``SentenceTransformer``, made with some texts.

    A list of budgets, such as ``keep=[0.6, 0.4]``, gives a list of models.

    Heads and neurons have gates, and with ``num_heads`` heads alone. With training, a decoder learns the next tokens,
    and others from labels or, without them, from their own logits or embeddings. For anything else, call a trainer.

    Without training, the units with the least Fisher information close in rounds and are removed, and the output
    projections that are left are solved in closed form (:func:`gating.compensate`). At most 1,024 examples are ranked
    on, with their labels or with labels drawn from the model's own predictions, and 1,024 are compensated on. The model
    is one that is fine-tuned already; token and image classifiers will do, too.

    Args:
        model: The dense model; unchanged, but for its device.
        data: Texts, or a ``datasets.Dataset`` with columns of texts, and maybe ``label``: classes or their numbers.
            Without training also images, or arguments of the model such as ``input_ids`` and ``labels``.
        speedup: Time of the dense model over that of the compact one, measured here; give one of the three budgets.
        keep: Share of the cost of all heads and neurons that stays.
        num_heads: Number of heads that stay.
        train: Whether the model is trained; without training, it is ready in about a minute.
        tokenizer: Tokenizer of the model, or its image processor; a ``SentenceTransformer`` has its own.
        args: Training arguments; by default 3 epochs, at least 200 steps, in a temporary folder and without reports.
        options: Keyword arguments of the trainer, such as ``recovery`` and ``gate_options``.

    Raises:
        TypeError: The data are neither a list of texts nor a ``datasets.Dataset``.
        ValueError: The budget, the kind of the model, a text or a label cannot be used.
    """
    budget: dict[str, Any] = {"speedup": speedup, "keep": keep, "num_heads": num_heads}
    check_budget(**budget)
    name, sizes = next((name, one) for name, one in budget.items() if one is not None)
    if isinstance(sizes, Sequence):
        check_sizes(name, sizes)
        others: dict[str, Any] = {"train": train, "tokenizer": tokenizer, "args": args, **options}
        return [prune(model, data, **{name: one}, **others) for one in sizes]
    units = "heads" if num_heads is not None else ["heads", "neurons"]
    if not train:
        if args is not None or options.keys() - {"gate_options"}:
            given = ", ".join(["args"] * (args is not None) + [name for name in options if name != "gate_options"])
            raise InputError(f"train=False has no steps: leave out {given}.")
        options = {"gate_options": {"units": units}, **options}
        rows, processor = encode_rows(model, data, tokenizer)
        made: Model = prune_untrained(model, rows, processor=processor, **budget, **options)
        return made
    data, base, is_embedder = _as_table(data), base_model(model), is_sentence_model(model)
    # An encoder, with a decoder or without one, would learn to copy its input.
    kind, decodes = base.config.model_type, getattr(base.config, "is_decoder", True)
    reads_both = base.config.is_encoder_decoder or (kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes)
    is_decoder = base.can_generate() and not reads_both
    is_classifier = any(cls.__name__.endswith("ForSequenceClassification") for cls in type(base).__mro__)
    if not (hasattr(model, "encode") if is_embedder else is_decoder or is_classifier):
        kinds = "classifiers of texts, decoders and SentenceTransformers"
        raise InputError(f"gating.prune trains {kinds}: for a {type(model).__name__}, call a trainer.")
    options = {"gate_options": {"units": units}, **budget, **options}
    has_plan = options.keys() & {"fine_tuning", "recovery", "freeze_weights", "objective"}
    if num_heads is None and not is_embedder and not has_plan:
        # The model is fine-tuned already: it is ranked as it is, and all steps recover from it.
        options |= {"fine_tuning": 0.0, "recovery": 1.0}
    # It teaches the copy, or embeds the texts.
    with evaluating(model), tempfile.TemporaryDirectory() as folder:
        if is_embedder:
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
        if trainer._recovery_steps:
            trainer.train()
        compact: Model = trainer.compact()
    return compact


def _as_table(data: Any) -> Any:
    """Return texts as a ``datasets.Dataset``, of which every row has its texts."""
    from datasets import Dataset

    if isinstance(data, Sequence) and not isinstance(data, str) and all(isinstance(text, str) for text in data):
        data = Dataset.from_dict({"text": list(data)})
    if not isinstance(data, Dataset):
        raise InputTypeError(f"data= takes a list of texts or a datasets.Dataset, got {shorten(repr(data))}.")
    texts = _texts_of(data)
    if not texts or not len(data) or any(None in data[name] for name in texts):
        raise InputError(f"data= has rows without a text, or no column of texts: {', '.join(data.column_names)}.")
    return data


def _texts_of(data: Any) -> list[str]:
    """Return the names of the columns of texts: ``text`` if there is one, else all."""
    kinds = {name: getattr(feature, "dtype", "") for name, feature in data.features.items()}
    return ["text"] * ("text" in kinds) or [name for name in kinds if "string" in kinds[name] and name not in _LABELS]


def encode_rows(model: Any, data: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Return arguments of a model as a ``datasets.Dataset``, made of texts or images, and the tokenizer that pads them.

    Columns of the data that are arguments of the model stay as they are.
    """
    from datasets import Dataset, Image

    base = base_model(model)
    if is_sentence_model(model):
        tokenizer = model.tokenizer
    given = accepted_arguments(base.forward).intersection(data.column_names if isinstance(data, Dataset) else ())
    if given & {base.main_input_name, "input_ids"}:
        return data.select_columns(sorted(given)), tokenizer
    images = [name for name, kind in getattr(data, "features", {}).items() if isinstance(kind, Image)]
    if images:
        labels = [name for name in data.column_names if name in _LABELS][:1]
        if tokenizer is None:
            raise InputError(f"Images for {type(base).__name__} need its image processor: give tokenizer=.")
        encode = lambda rows: dict(tokenizer([one.convert("RGB") for one in rows[images[0]]]))  # noqa: E731
        others = [name for name in data.column_names if name not in labels]
        rows = data.map(encode, batched=True, remove_columns=others)
        return (rows.rename_column(labels[0], "labels") if labels else rows), None
    data = _as_table(data)
    if tokenizer is None:
        raise InputError(f"Texts for {type(base).__name__} need its tokenizer: give tokenizer=.")
    rows = _tokenized(base, data, tokenizer, has_labels=not (base.can_generate() or is_sentence_model(model)))
    padded = copy(tokenizer)
    padded.pad_token = padded.pad_token or padded.eos_token
    return rows, padded


def _tokenized(model: Any, data: Any, tokenizer: Any, *, has_labels: bool) -> Any:
    """Return the tokens of one or two columns of texts, and the numbers of their classes, if they have some."""
    config: Any = model.config
    if len(texts := _texts_of(data)) > 2:
        raise InputError(f"data= has the texts {', '.join(texts)}: keep one or two with data.select_columns([...]).")
    labels = [name for name in data.column_names if name in _LABELS and has_labels][:1]
    length = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", _LENGTH), _LENGTH)
    data = data.map(
        lambda rows: tokenizer(*(rows[name] for name in texts), truncation=True, max_length=length),
        batched=True,
        remove_columns=[name for name in data.column_names if name not in labels],
    )
    if labels and config.num_labels > 1 and config.problem_type in (None, "single_label_classification"):
        data = _with_classes(data, labels[0], config)
    return data


def _text_trainer(model: Any, data: Any, tokenizer: Any) -> tuple[type[Any], type[Any], dict[str, Any]]:
    """Return a trainer of a classifier or decoder, the class of its arguments, and its keyword arguments."""
    config: Any = model.config
    is_decoder = model.can_generate()
    if tokenizer is None:
        raise InputError(f"Texts for {type(model).__name__} need its tokenizer: give tokenizer=.")
    data = _tokenized(model, data, tokenizer, has_labels=not is_decoder)
    labels = [name for name in data.column_names if name in _LABELS]
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


def _with_classes(data: Any, name: str, config: Any) -> Any:
    """Return data with the numbers of classes as labels; lists, for several classes at once, stay."""
    if isinstance(data[0][name], list):
        return data
    numbers = {**config.label2id, **{number: number for number in (*range(config.num_labels), -100)}}
    if unknown := [label for label in data[name] if label not in numbers]:
        classes = ", ".join(config.label2id)
        raise InputError(f"data= has the label {unknown[0]!r}, which is no class of the model ({classes}).")
    return data.remove_columns(name).add_column("labels", [numbers[label] for label in data[name]])


def _sentence_trainer(model: Any, data: Any) -> tuple[type[Any], type[Any], dict[str, Any]]:
    """Return a trainer of an embedding model, the class of its arguments, and its keyword arguments."""
    from sentence_transformers import SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss

    from gating.embedding.losses import EmbeddingDistance
    from gating.integrations.sentence_trainers import GatedSentenceTransformerTrainer

    scores = [data[name] for name in data.column_names if name in _LABELS]
    if scores and (len(data.column_names) < 3 or any(score is None or score != score for score in scores[0])):
        raise InputError("Labels of embeddings are scores of pairs: give two texts and a number in each row, or texts.")
    loss: Any = CoSENTLoss if scores else MultipleNegativesRankingLoss
    if len(data.column_names) == 1:
        texts = list(data[data.column_names[0]])
        # As the trainer computes them: without a prompt, and whole.
        with evaluating(model), model.truncate_embeddings(None):
            embeddings = model.encode(texts, prompt="").tolist()
        data, loss = data.add_column("label", embeddings), EmbeddingDistance
    return GatedSentenceTransformerTrainer, SentenceTransformerTrainingArguments, {"train_dataset": data, "loss": loss}
