"""Texts for language models, from plain text files or tables."""

from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from gating.data.examples import Examples
from gating.data.tables import PLAIN_TEXTS, read_file, reading
from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError

__all__ = ["load_text", "read_texts"]


def load_text(*, train: str, validation: str | None = None, test: str | None = None) -> Examples:
    """Load texts: a plain file (txt, UTF-8) is one text, a table (csv, tsv, json, jsonl, parquet) has one in each row.

    Args:
        train: File to train on.
        validation: File for validation. If None, it is the last tenth of the training file, or the first half of that
            if there is no test file either.
        test: File for the test. If None, there is no test split, or it is the last twentieth of the training file if
            there is no validation file either.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is empty, cannot be read, or is too short to be split.
    """
    files = {"train": train, "validation": validation, "test": test}
    tables = {split: read_texts(split, file) for split, file in files.items() if file is not None}
    rows = {}
    if validation is None:
        parts = ("train", "validation") if test is not None else ("train", "validation", "test")
        divided = dict(zip(parts, _divide(tables["train"], len(parts), train), strict=True))
        ends = accumulate(map(len, divided.values()))
        rows = {part: np.arange(end - len(divided[part]), end) for part, end in zip(parts, ends, strict=True)}
        tables |= divided
        if is_rank_zero():
            print(f"data.train={train} is divided from beginning to end: {', '.join(parts)}.")
    return Examples(DatasetDict({split: tables[split] for split in files if split in tables}), rows=rows)


def read_texts(split: str, file: str, *, divide: Callable[[str], list[str]] = lambda text: [text]) -> Dataset:
    """Read a file of texts: a plain file is divided by a function, by default into one text, a table has one in a row.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is empty or cannot be read.
    """
    path = Path(file).expanduser()
    if path.suffix.lower() not in PLAIN_TEXTS or not path.is_file():
        return read_file(split, file)
    with reading(f"data.{split}={file}: the file"):
        # Without the mark that some editors put at the beginning.
        text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise InputError(f"data.{split}={file}: the file is empty.")
    return Dataset.from_dict({"text": divide(text)})


def _divide(table: Dataset, num_parts: int, file: str) -> list[Dataset]:
    """Split the rows of a table, or its only text, into consecutive parts of .9 and .1, or .9, .05 and .05."""
    ends = (0, 0.9, 1) if num_parts == 2 else (0, 0.9, 0.95, 1)
    is_text = len(table) == 1 and table.column_names == ["text"]
    size = len(table["text"][0]) if is_text else len(table)
    bounds = [round(end * size) for end in ends]
    if len(set(bounds)) < len(bounds):
        raise InputError(
            f"data.train={file} is too short to leave parts for validation and test: give data.validation=FILE."
        )
    if not is_text:
        return [table.select(range(start, stop)) for start, stop in pairwise(bounds)]
    text = table["text"][0]
    cuts = [_end_of_line(text, bound, limit) for bound, limit in pairwise(bounds[1:])]
    return [Dataset.from_dict({"text": [text[start:stop]]}) for start, stop in pairwise([0, *cuts, size])]


def _end_of_line(text: str, start: int, limit: int) -> int:
    """Return the end of the line at a position; the position itself if the line ends beyond a limit."""
    end = text.find("\n", start, limit - 1)
    return start if end < 0 else end + 1
