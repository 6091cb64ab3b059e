"""Embeddings of a teacher, computed once for all texts of a run and kept in the cache of ``datasets``."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher
from sentence_transformers import SentenceTransformer

from gating.compact.files import check_manifest, digest_tensors
from gating.data.tokens import cache_file
from gating.errors import InputError, loading
from gating.models.hub import locate
from gating.tracking.progress import bar
from gating.vocabulary import check_vocabulary

# Columns of the embeddings of texts and second texts.
EMBEDDINGS, PAIR_EMBEDDINGS = "task_embeddings", "task_pair_embeddings"
_BATCH = 512


def load_sentence_model(name: str, *, revision: str = "main", setting: str) -> Any:
    """Return the ``SentenceTransformer`` in a folder or on the hub, on the CPU, in full precision."""
    with loading(f"{setting}={name}", remedy="Name a model of sentence-transformers, or another encoder."):
        place = locate(name, revision=revision)
        check_manifest(Path(place))
        model = SentenceTransformer(
            place,
            device="cpu",
            revision=None if Path(place).is_dir() else revision,
            model_kwargs={"dtype": torch.float32},
        )
        if model.transformers_model is None or len(model) == 1:
            raise InputError(f"{setting}={name} is no transformer with a pooling, which embeddings need.")
    check_vocabulary(model.tokenizer, name=f"{setting}={name}")
    return model.eval()


def add_embeddings(
    splits: DatasetDict, tokens: DatasetDict, teacher: Any, *, max_length: int, pairs: bool = False
) -> DatasetDict:
    """Return tokenized splits with the column ``task_embeddings``: a teacher's embeddings of the column ``text``.

    The teacher truncates texts to ``max_length`` tokens, too. With ``pairs``, training data also gets
    ``task_pair_embeddings`` of the column ``text_pair``.
    """
    digest = _digest(teacher)
    own_length = teacher.max_seq_length
    teacher.max_seq_length = min(max_length, own_length or max_length)
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        added = {}
        key = (digest, teacher.max_seq_length)
        for split, table in splits.items():
            parts = [tokens[split], _embed(table["text"][:], EMBEDDINGS, teacher, key=key)]
            if pairs and split == "train" and "text_pair" in table.column_names:
                parts.append(_embed(table["text_pair"][:], PAIR_EMBEDDINGS, teacher, key=key))
            added[split] = datasets.concatenate_datasets(parts, axis=1)
    finally:
        teacher.max_seq_length = own_length
        teacher.to("cpu")
    return DatasetDict(added)


def _embed(texts: list[Any], column: str, teacher: Any, *, key: tuple[str, int]) -> Dataset:
    """Return the embeddings of texts as a table of one column, from the cache if they are there."""
    fingerprint = Hasher.hash((column, (texts, *key), "float32"))

    def embed(batch: dict[str, list[int]]) -> dict[str, Any]:
        rows = [str(texts[row]) for row in batch["row"]]
        # Whole, also those of a model that cuts them off.
        vectors = teacher.encode(rows, prompt="", truncate_dim=sys.maxsize, show_progress_bar=False)
        if not np.isfinite(vectors).all():
            raise InputError("The teacher has embeddings that are NaN or infinite: its weights are damaged.")
        # Only directions count. In half precision, the dense model would not find its own neighbors among close ones.
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True).clip(min=1e-300)
        progress.update(len(rows))
        return {column: (vectors / lengths).astype(np.float32)}

    with bar(title="Embeddings of the teacher", total=len(texts), unit="texts") as progress:
        return Dataset.from_dict({"row": range(len(texts))}).map(
            embed,
            batched=True,
            batch_size=_BATCH,
            remove_columns=["row"],
            features=datasets.Features({column: datasets.List(datasets.Value("float32"))}),
            new_fingerprint=fingerprint,
            cache_file_name=cache_file(fingerprint),
        )


def _digest(teacher: Any) -> str:
    """Return a digest of all that embeddings depend on: modules with their settings, weights, and the tokenizer."""
    config = {**teacher.transformers_model.config.to_dict(), "_name_or_path": None}
    tokenizer = teacher.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Truncation and padding are set by each call.
    stored = {} if backend is None else {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    others = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_input_names
    words = (sorted(tokenizer.get_vocab().items()), stored, others, tokenizer.special_tokens_map)
    weights = digest_tensors(sorted(teacher.state_dict().items()))
    return hashlib.sha256(f"{(list(teacher), config, words)!r}\n{weights}".encode()).hexdigest()
