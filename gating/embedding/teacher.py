"""Embeddings of a teacher, computed once for all texts of a run and kept in the cache of ``datasets``."""

import hashlib
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher

from gating.embedding.processor import require_sentence_transformers
from gating.errors import InputError, loading
from gating.models.hub import locate

__all__ = ["add_embeddings", "load_sentence_model"]

# Column of the embeddings.
EMBEDDINGS = "task_embeddings"
_BATCH = 1024


def load_sentence_model(name: str, *, revision: str = "main", setting: str) -> Any:
    """Return a ``SentenceTransformer`` on the CPU, in full precision.

    Args:
        name: A folder, a name on the hub, or ``package://NAME/FOLDER``.
        revision: Branch, tag or commit on the hub.
        setting: Name of the setting that gives the name, for messages.

    Raises:
        ImportError: sentence-transformers is not installed.
        InputError: The model cannot be loaded, or it has no transformer of texts as its first module.
    """
    require_sentence_transformers()
    from sentence_transformers import SentenceTransformer

    place = locate(name, revision=revision)
    with loading(f"{setting}={name}", remedy="Name a model of sentence-transformers, or another encoder."):
        model = SentenceTransformer(
            place,
            device="cpu",
            revision=None if Path(place).is_dir() else revision,
            model_kwargs={"dtype": torch.float32},
        )
    if model.transformers_model is None or model.tokenizer is None:
        raise InputError(f"{setting}={name} has no transformer of texts as its first module, on which gates could be.")
    return model.eval()


def add_embeddings(splits: DatasetDict, tokens: DatasetDict, teacher: Any, *, max_length: int) -> DatasetDict:
    """Return tokenized splits with the column ``task_embeddings``: a teacher's embeddings of the column ``text``.

    Args:
        splits: Splits with texts.
        tokens: The same rows, tokenized.
        teacher: A ``SentenceTransformer``.
        max_length: Number of tokens to which the teacher truncates texts, too.
    """
    digest = _digest(teacher)
    own_length = teacher.max_seq_length
    teacher.max_seq_length = min(max_length, own_length or max_length)
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        added = {}
        for split, table in splits.items():
            embedded = _embed(table, teacher, key=(digest, teacher.max_seq_length))
            added[split] = datasets.concatenate_datasets([tokens[split], embedded], axis=1)
    finally:
        teacher.max_seq_length = own_length
        teacher.to("cpu")
    return DatasetDict(added)


def _embed(table: Dataset, teacher: Any, *, key: tuple[str, int]) -> Dataset:
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "head-gating"
    folder.mkdir(parents=True, exist_ok=True)
    texts = table.select_columns(["text"])
    name = Hasher.hash((texts["text"][:], *key))
    # Half precision is nearer than any student will be.
    features = datasets.Features({EMBEDDINGS: datasets.List(datasets.Value("float16"))})
    return texts.map(
        lambda batch: {EMBEDDINGS: teacher.encode(list(map(str, batch["text"])), prompt="", show_progress_bar=False)},
        batched=True,
        batch_size=_BATCH,
        remove_columns=["text"],
        features=features,
        new_fingerprint=name,
        cache_file_name=str(folder / f"{name}.arrow"),
        desc="Embeddings of the teacher",
    )


def _digest(teacher: Any) -> str:
    """Return a digest of a teacher's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
