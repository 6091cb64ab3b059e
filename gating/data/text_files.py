"""Plain texts for language models: files of text as they are, or tables with a column of text."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from datasets import Dataset, DatasetDict

from gating.data.examples import Examples
from gating.data.tables import read_file, warn_of_same_files
from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError

__all__ = ["load_text"]

_PLAIN = (".txt", ".text", ".md")
# Shares of a single file that train, before those for validation and test.
_TRAIN, _VALIDATION = 0.9, 0.95


def load_text(*, train: str, validation: str | None = None, test: str | None = None) -> Examples:
    """Load texts: a plain file (txt, UTF-8) is one text, a table (csv, tsv, json, jsonl, parquet) has one in each row.

    Args:
        train: File to train on.
        validation: File for validation; the last tenth of the training file if left out, or its first half where that
            is for the test, too.
        test: File for the test; none, or the last twentieth of the training file where validation is left out as well.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is empty or cannot be read, or is too short to be divided.
    """
    files = {"train": train, "validation": validation, "test": test}
    tables = {split: _read(split, file) for split, file in files.items() if file is not None}
    warn_of_same_files(files)
    if validation is None:
        parts = ("train", "validation") if test is not None else ("train", "validation", "test")
        tables = {**tables, **dict(zip(parts, _divide(tables["train"], len(parts), train), strict=True))}
        if is_rank_zero():
            print(f"data.train={train} is divided from beginning to end: {', '.join(parts)}.")
    return Examples(DatasetDict({split: tables[split] for split in files if split in tables}))


def _read(split: str, file: str) -> Dataset:
    path = Path(file).expanduser()
    if path.suffix.lower() not in _PLAIN or not path.is_file():
        return read_file(split, file, also=_PLAIN)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"data.{split}={file}: the file is no text in UTF-8 ({error}).") from error
    if not text.strip():
        raise InputError(f"data.{split}={file}: the file is empty.")
    return Dataset.from_dict({"text": [text]})


def _divide(table: Dataset, num_parts: int, file: str) -> list[Dataset]:
    """Cut a table, or its only text, into consecutive parts: .9 and .1, or .9, .05 and .05 of it."""
    shares = (0, _TRAIN, 1) if num_parts == 2 else (0, _TRAIN, _VALIDATION, 1)
    is_text = len(table) == 1 and table.column_names == ["text"]
    size = len(table["text"][0]) if is_text else len(table)
    bounds = [round(share * size) for share in shares]
    if len(set(bounds)) < len(bounds):
        raise InputError(
            f"data.train={file} is too short to leave parts for validation and test: give data.validation=FILE."
        )
    if not is_text:
        return [table.select(range(start, stop)) for start, stop in pairwise(bounds)]
    text = table["text"][0]
    cuts = [_end_of_line(text, bound, limit) for bound, limit in pairwise(bounds[1:])]
    return _pieces(text, [0, *cuts, size])


def _end_of_line(text: str, start: int, limit: int) -> int:
    """Return where the line that is being read ends, if it does so before a limit."""
    end = text.find("\n", start, limit - 1)
    return start if end < 0 else end + 1


def _pieces(text: str, bounds: Sequence[int]) -> list[Dataset]:
    return [Dataset.from_dict({"text": [text[start:stop]]}) for start, stop in pairwise(bounds)]
