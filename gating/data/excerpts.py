"""Excerpts of texts as examples."""

from collections import Counter

from datasets import Dataset, DatasetDict

__all__ = ["cut_excerpts"]


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
