"""Evaluation sets of sentence embeddings: scored pairs, and queries with the document that they belong to."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gating.data.sources import load_bbc_news

# The split of the articles: the training texts are of those that are not held out.
BBC: dict[str, Any] = {"held_out": 0.2, "seed": 0}
_ENTAILMENT = "0"


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


@dataclass(frozen=True)
class Sets:
    """All evaluation sets.

    Attributes:
        pairs: By name: ``sick`` relatedness, test, and ``stsb``, test, if its file was given.
        retrieval: By name: ``bbc``, headlines and the articles below them, and ``snli``, entailed hypotheses and the
            distinct premises.
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
    """Read all evaluation sets.

    Args:
        data: Folder with ``sick`` and ``snli20k``, tables with a header and without quotes.
        stsb: Test set of STS-B, csv without a header: sentence, sentence, score; left out if None.
    """
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
    articles = load_bbc_news(**BBC).splits["test"]["text"]
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
