"""Tables of local files, told apart by their ending."""

import csv
import filecmp
import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, MissingFileError

__all__ = ["read_file", "warn_of_same_files"]

_log = logging.getLogger(__name__)

# One reader of `datasets` for each file ending. Empty cells and words such as "null" are text like any other.
_TABLE = {"keep_default_na": False, "na_values": []}
_READERS: dict[str, tuple[str, dict[str, object]]] = {
    ".csv": ("csv", _TABLE),
    ".tsv": ("csv", {**_TABLE, "sep": "\t", "quoting": 3}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}

# What the readers say of a file that has a header and nothing else.
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")


def read_file(split: str, file: str, *, also: Sequence[str] = ()) -> Dataset:
    """Read a table.

    Args:
        split: What it is for, for messages.
        file: The file.
        also: Endings of files that the caller can read itself, for messages.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is empty or cannot be read.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise MissingFileError(f"data.{split}={file}: there is no such file.")
    if path.suffix.lower() not in _READERS:
        raise InputError(
            f"data.{split}={file}: cannot read {path.suffix or 'a file without ending'}; use "
            f"{', '.join([*also, *_READERS])}."
        )
    builder, options = _READERS[path.suffix.lower()]
    _check_content(path.read_bytes(), f"data.{split}={file}", is_json=builder == "json")
    if builder == "csv":
        options = {**options, "features": _text_columns(path, f"data.{split}={file}")}
    try:
        table = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except Exception as error:  # Its readers, and what unpacks files that look packed, raise errors of many kinds.
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()).rstrip(".")
        if any(text in reason for text in _NO_ROWS):
            raise InputError(f"data.{split}={file}: the file has no rows.") from error
        remedy = " Save it as UTF-8." if isinstance(cause, UnicodeDecodeError) else ""
        raise InputError(f"data.{split}={file}: the file cannot be read ({reason}).{remedy}") from error
    return table


def _check_content(content: bytes, what: str, *, is_json: bool) -> None:
    """Raise ``ValueError`` for a file that is empty, or that the reader of JSON only seems to read."""
    if not content.strip():
        raise InputError(f"{what}: the file is empty.")
    if not is_json:
        return
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
        # What reads it ends the whole process at some other values.
        raise InputError(f"{what}: the file cannot be read (it begins with no JSON object or list).")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: the file cannot be read ({error}). Save it as UTF-8.") from error


def warn_of_same_files(files: Mapping[str, str | None]) -> None:
    """Warn, in the first process, where splits have one file, or copies of it.

    Args:
        files: The file of each split, which is there; None where a split has none.
    """
    given = [(split, file, Path(file).expanduser()) for split, file in files.items() if file is not None]
    same = [
        f"data.{split}={file} and data.{other_split}={other_file}"
        for (split, file, path), (other_split, other_file, other_path) in combinations(given, 2)
        if path.samefile(other_path) or filecmp.cmp(path, other_path, shallow=False)
    ]
    if same and is_rank_zero():
        _log.warning(
            f"{'; '.join(same)} are the same: metrics tell how well the model remembers, not how well it does on new "
            "examples. Give another file, or leave the second one out."
        )


def _text_columns(path: Path, what: str) -> datasets.Features | None:
    """Return the columns of a table, all as text: ``007`` is no number, and 01 another class than 1.

    Raises:
        ValueError: Two columns have one name, or rows have more fields than there are columns.
    """
    csv.field_size_limit(2**31 - 1)
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = (row for row in csv.reader(file, **dialect) if row)
            header, first = next(rows), next(rows, [])
    except (UnicodeDecodeError, csv.Error, StopIteration):
        return None  # For the reader of the whole file to say.
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{what}: the file has two columns {twice!r}. Rename one of them.")
    if len(first) > len(header):
        # They would be moved by a column, and the first one be lost.
        raise InputError(
            f"{what}: the first row has {len(first)} fields, and there are {len(header)} columns. Put quotes around "
            "texts with commas in a csv file; texts in a tsv file have no tabs."
        )
    names = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
    return datasets.Features(dict.fromkeys(names, datasets.Value("string")))
