"""A tiny model of sentence-transformers, and sentences and pairs for it."""

import random
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import BertConfig, BertModel

from tests.support.tiny_run import FEW_STEPS, WORDS, make_model_folder

__all__ = ["make_sentence_inputs", "make_sentence_model", "sentences_of", "write_pairs", "write_sentences"]

_WIDTH = 32


def make_sentence_model(folder: Path, *, pooling: str = "mean", dense: int | None = None, seed: int = 0) -> Path:
    """Save a random BERT with 3 layers of 4 heads as a model of sentence-transformers; return its folder."""
    plain = make_model_folder(folder.with_name(f"{folder.name}-plain"), seed=seed)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=45,
        hidden_size=_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(plain)
    transformer = modules.Transformer(str(plain), max_seq_length=24)
    parts = [transformer, modules.Pooling(_WIDTH, pooling_mode=pooling)]
    if dense is not None:
        parts.append(modules.Dense(_WIDTH, dense))
    SentenceTransformer(modules=[*parts, modules.Normalize()], device="cpu").save(str(folder), create_model_card=False)
    return folder


def sentences_of(number: int, *, seed: int = 0) -> list[str]:
    """Return random sentences of 2 to 9 words, all different."""
    rng = random.Random(seed)
    return [
        f"{WORDS[n % 40]} {WORDS[n // 40]} {' '.join(rng.choices(WORDS, k=rng.randint(1, 7)))}" for n in range(number)
    ]


def write_sentences(path: Path, *, rows: int, seed: int = 0) -> Path:
    """Write a file with one sentence a line."""
    path.write_text("\n".join(sentences_of(rows, seed=seed)) + "\n", encoding="utf-8")
    return path


def write_pairs(path: Path, *, rows: int, seed: int = 0, scores: bool = True) -> Path:
    """Write a table of pairs of sentences, with the share of words of the first one that the second one keeps."""
    rng = random.Random(seed)
    lines = ["text_a\ttext_b\tscore" if scores else "text_a\ttext_b"]
    for number, first in enumerate(sentences_of(rows, seed=seed)):
        kept = number % 5
        second = " ".join([*first.split()[:kept], *rng.choices(WORDS, k=3)])
        lines.append(f"{first}\t{second}" + (f"\t{kept + number / 1000}" if scores else ""))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_sentence_inputs(folder: Path) -> list[str]:
    """Write model and data, and return the settings of a tiny run that use them."""
    return [
        "model=pretrained",
        f"model.name={make_sentence_model(folder / 'model')}",
        "task=embedding",
        "data=sentences",
        f"data.train={write_sentences(folder / 'train.txt', rows=64)}",
        f"data.validation={write_pairs(folder / 'validation.tsv', rows=16, seed=1)}",
        f"data.test={write_pairs(folder / 'test.tsv', rows=16, seed=2)}",
        *FEW_STEPS,
    ]
