"""Training texts of the comparison, a sentence a line, without any text of an evaluation set."""

import hashlib
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.embeddings.sets import BBC, Sets, read_columns
from gating.data.sentences import load_bbc_sentences
from gating.data.sources import load_bbc_news

__all__ = ["TRAIN", "VALIDATION", "write_texts"]

TRAIN, VALIDATION = "train.txt", "validation.txt"
_NUM_VALIDATION = 1000
# Folder -> columns of its training table. The texts of a source that others have, too, count for the first.
_TABLES = {
    "snli20k": ("text_a", "text_b"),
    "multi30k": ("text_a",),
    "sst2_sentence": ("text",),
    "trec": ("text",),
}
# Also without those splits of evaluation data that nothing is measured on.
_HELD_OUT = {"sick": ("train", "validation", "test"), "snli20k": ("validation", "test")}
_ARTICLES = "bbc"


def write_texts(data: Path, folder: Path, sets: Sets) -> dict[str, Any]:
    """Write ``train.txt`` and ``validation.txt``, in an order drawn by a fixed seed.

    Args:
        data: Folder with the tables.
        folder: Folder for the files.
        sets: Evaluation sets.

    Returns:
        The number of texts of each source, those that are left out since evaluation data have them, and a checksum.
    """
    held_out = {_normalized(text) for text in _held_out(data, sets)}
    sources = {name: _of_tables(data / name / "train.tsv", columns) for name, columns in _TABLES.items()}
    sources[_ARTICLES] = list(load_bbc_sentences(**BBC).splits["train"]["text"])
    kept: dict[str, str] = {}
    counts, left_out = {}, 0
    for name, texts in sources.items():
        before = len(kept)
        for text in texts:
            key = _normalized(text)
            left_out += key in held_out
            if key and key not in held_out:
                kept.setdefault(key, " ".join(text.split()))
        counts[name] = len(kept) - before
    lines = list(kept.values())
    random.Random(0).shuffle(lines)
    folder.mkdir(parents=True, exist_ok=True)
    for file, chosen in ((VALIDATION, lines[:_NUM_VALIDATION]), (TRAIN, lines[_NUM_VALIDATION:])):
        (folder / file).write_text("".join(f"{line}\n" for line in chosen), encoding="utf-8")
    return {
        "counts": counts,
        "validation": _NUM_VALIDATION,
        "left_out": left_out,
        "sha256": hashlib.sha256((folder / TRAIN).read_bytes()).hexdigest(),
    }


def _of_tables(path: Path, columns: tuple[str, ...]) -> list[str]:
    return [text for column in read_columns(path, columns) for text in column]


def _held_out(data: Path, sets: Sets) -> Iterable[str]:
    yield from sets.texts()
    for name, splits in _HELD_OUT.items():
        for split in splits:
            yield from _of_tables(data / name / f"{split}.tsv", ("text_a", "text_b"))
    articles = load_bbc_sentences(**BBC).splits
    for split in ("validation", "test"):
        yield from articles[split]["text"]
    # Headlines and short sentences, which the sentences leave out.
    for article in load_bbc_news(**BBC).splits["test"]["text"]:
        yield from article.splitlines()


def _normalized(text: str) -> str:
    """Return a text in lower case, without punctuation and spaces."""
    return re.sub(r"[\W_]+", "", text.lower())
