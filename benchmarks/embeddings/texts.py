"""Evaluation sets of sentence embeddings, and training texts without any text of an evaluation set.

Training texts come in pairs that are learned in one batch; evaluation sets are scored pairs, and queries with the
document that they belong to.
"""

import csv
import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from gating.data.sentences import split_sentences
from gating.data.sources import load_bbc_news

# The split of the articles: the training texts are of those that are not held out.
_BBC: dict[str, Any] = {"held_out": 0.2, "seed": 0}
_ENTAILMENT = "0"
TRAIN, VALIDATION = "train.tsv", "validation.tsv"
# For the cards of the models, without commas and brackets, which are read as a list on the command line.
ABOUT = (
    "sentences without labels: SNLI (CC BY-SA 4.0); Multi30k (non-commercial research and education); SST-2 and "
    "TREC (no terms stated); BBC News (Greene and Cunningham 2006; the BBC's own; non-commercial research). "
    "Of one pair in ten also a negation made by rules."
)
_NUM_VALIDATION = 1000
_SNLI = "snli20k"
# Folder -> column of the single texts of its training table.
_SINGLE = {"multi30k": "text_a", "sst2_sentence": "text", "trec": "text"}
# All splits of evaluation data but the training texts, also those that nothing is measured on.
_HELD_OUT = {"sick": ("train", "validation", "test"), _SNLI: ("validation", "test")}


class Pairs(NamedTuple):
    """Pairs of sentences with the similarity that people gave them."""

    first: list[str]
    second: list[str]
    scores: list[float]


class Retrieval(NamedTuple):
    """Queries with the number of the one document that each belongs to, and the documents."""

    queries: list[str]
    answers: list[int]
    documents: list[str]


class Sets(NamedTuple):
    """All evaluation sets.

    Attributes:
        pairs: Pairs of ``sick`` and, if its file was given, of ``stsb``.
        retrieval: Headlines and articles (``bbc``), entailed hypotheses and the distinct premises (``snli``).
        sentences: Distinct sentences of the SICK test pairs, whose neighbors are compared.
    """

    pairs: dict[str, Pairs]
    retrieval: dict[str, Retrieval]
    sentences: list[str]

    def texts(self) -> Iterable[str]:
        """Yield every text."""
        for pairs in self.pairs.values():
            yield from (*pairs.first, *pairs.second)
        for retrieval in self.retrieval.values():
            yield from (*retrieval.queries, *retrieval.documents)


def read_sets(data: Path, stsb: Path | None) -> Sets:
    """Read all evaluation sets: those of a folder of tables, and STS-B, csv without a header, if its file is given."""
    first, second, scores = read_columns(data / "sick" / "test.tsv", ("text_a", "text_b", "relatedness"))
    pairs = {"sick": Pairs(first, second, [float(score) for score in scores])}
    if stsb is not None:
        with stsb.open(encoding="utf-8", newline="") as file:
            one, other, similarity = map(list, zip(*csv.reader(file), strict=True))
        pairs["stsb"] = Pairs(one, other, [float(score) for score in similarity])
    return Sets(pairs, {"bbc": _bbc(), "snli": _snli(data)}, list(dict.fromkeys([*first, *second])))


def read_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Return columns of a table that is separated by tabs and has no quotes."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [[row[name] for row in rows] for name in names]


def _bbc() -> Retrieval:
    articles = load_bbc_news(**_BBC).splits["test"]["text"]
    parts = [article.strip().partition("\n") for article in articles]
    return Retrieval(
        [headline.strip() for headline, _, _ in parts],
        list(range(len(parts))),
        [" ".join(rest.split()) for _, _, rest in parts],
    )


def _snli(data: Path) -> Retrieval:
    rows = list(zip(*read_columns(data / "snli20k" / "test.tsv", ("text_a", "text_b", "label")), strict=True))
    documents = {premise: number for number, premise in enumerate(dict.fromkeys(premise for premise, _, _ in rows))}
    entailed = {hypothesis: documents[premise] for premise, hypothesis, label in rows if label == _ENTAILMENT}
    return Retrieval(list(entailed), list(entailed.values()), list(documents))


def write_texts(data: Path, folder: Path, sets: Sets) -> str:
    """Write ``train.tsv``, with two texts in each row, and ``validation.tsv``, drawn by a fixed seed.

    Pairs are premise and hypothesis of SNLI, consecutive sentences of BBC News, and others at random.

    Returns:
        The number of training pairs, and a checksum.
    """
    held_out = {_normalized(text) for text in _held_out(data, sets)}

    def usable(*texts: str) -> bool:
        return all(key and key not in held_out for key in map(_normalized, texts))

    first, second = read_columns(data / _SNLI / "train.tsv", ("text_a", "text_b"))
    pairs = [pair for pair in zip(first, second, strict=True) if usable(*pair)]
    pairs += [pair for pair in _in_twos(_article_sentences()) if usable(*pair)]
    others: dict[str, None] = {}
    for name, column in _SINGLE.items():
        for text in read_columns(data / name / "train.tsv", (column,))[0]:
            if usable(text):
                others.setdefault(_clean(text))
    single, draw = list(others), random.Random(0)
    draw.shuffle(single)
    pairs += _in_twos(single[_NUM_VALIDATION:])
    draw.shuffle(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / VALIDATION, "text", single[:_NUM_VALIDATION])
    _write(folder / TRAIN, "text_a\ttext_b", (f"{_clean(one)}\t{_clean(other)}" for one, other in pairs))
    return f"{len(pairs):,} pairs, SHA-256 {hashlib.sha256((folder / TRAIN).read_bytes()).hexdigest()}"


def _article_sentences() -> list[str]:
    """Return the distinct sentences of the training articles that no other article has, in their order."""
    splits = load_bbc_news(**_BBC).splits
    seen = {one for split in ("validation", "test") for text in splits[split]["text"] for one in split_sentences(text)}
    sentences = dict.fromkeys(chain.from_iterable(map(split_sentences, splits["train"]["text"])))
    return [one for one in sentences if one not in seen]


def _held_out(data: Path, sets: Sets) -> Iterator[str]:
    yield from sets.texts()
    for name, splits in _HELD_OUT.items():
        for split in splits:
            yield from chain(*read_columns(data / name / f"{split}.tsv", ("text_a", "text_b")))
    articles = load_bbc_news(**_BBC).splits
    for text in chain(articles["validation"]["text"], articles["test"]["text"]):
        yield from (*split_sentences(text), *text.splitlines())


def _in_twos(texts: list[str]) -> Iterable[tuple[str, str]]:
    return zip(texts[::2], texts[1::2], strict=False)


def _write(path: Path, header: str, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in (header, *lines)), encoding="utf-8")


def _clean(text: str) -> str:
    return " ".join(text.split())


def _normalized(text: str) -> str:
    """Return a text in lower case, without punctuation and spaces."""
    return re.sub(r"[\W_]+", "", text.lower())
