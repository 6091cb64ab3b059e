"""A tiny model of sentence-transformers, pairs of texts, and a trainer with gates for it."""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

import gating
from gating.integrations import GatedCrossEncoderTrainer, GatedSentenceTransformerTrainer
from tests.integrations.conftest import ARGUMENTS

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_WORDS = [f"w{number}" for number in range(40)]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def texts(number: int, *, seed: int) -> list[str]:
    """Return texts of 2 to 8 words."""
    source = random.Random(seed)
    return [" ".join(source.choices(_WORDS, k=source.randint(2, 8))) for _ in range(number)]


def pairs(**columns: Any) -> Dataset:
    """Return 64 pairs of texts, of which the second begins as the first, and further columns."""
    first, second = texts(64, seed=1), texts(64, seed=2)
    rows = {"anchor": first, "positive": [f"{one} {other}" for one, other in zip(first, second, strict=True)]}
    return Dataset.from_dict({**rows, **columns})


def save_transformer(folder: Path, *, cls: Any = BertModel, **sizes: Any) -> str:
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), _SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    cls(BertConfig(vocab_size=44, max_position_embeddings=32, **{**_SIZES, **sizes})).save_pretrained(folder)
    return str(folder)


def make_embedder(folder: Path, *, dense: bool = False, **sizes: Any) -> SentenceTransformer:
    modules: list[Any] = [Transformer(save_transformer(folder / "base", **sizes)), Pooling(32)]
    torch.manual_seed(1)
    return SentenceTransformer(modules=[*modules, Dense(32, 16)] if dense else modules, device="cpu")


def make_cross_encoder(folder: Path) -> CrossEncoder:
    place = save_transformer(folder / "base", cls=BertForSequenceClassification, num_labels=1)
    return CrossEncoder(place, device="cpu")


def make_trainer(folder: Path, model: Any, *, loss: Any = MultipleNegativesRankingLoss, **options: Any) -> Any:
    """Return a trainer of 16 steps, 12 of them the search; options of the training arguments are in ``args``."""
    places = {"output_dir": str(folder / "checkpoints"), "save_steps": 2}
    arguments = {**ARGUMENTS, **places, **options.pop("args", {})}
    is_cross = isinstance(model, CrossEncoder)
    cls = GatedCrossEncoderTrainer if is_cross else GatedSentenceTransformerTrainer
    of_arguments = CrossEncoderTrainingArguments if is_cross else SentenceTransformerTrainingArguments
    return cls(
        model=model,
        args=of_arguments(**arguments),
        loss=loss(model),
        **{"train_dataset": pairs(), "objective": gating.ExactBudget(num_heads=5), "recovery": 0.25, **options},
    )
