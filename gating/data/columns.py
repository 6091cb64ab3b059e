"""Which columns of a data set a task reads, by the names that people give them."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from gating.data.rows import warn_of_overlap
from gating.errors import InputError

__all__ = ["find_column", "find_input_columns", "find_text_columns", "take_columns"]

# Names of a text's column, or of a pair's; the first ones that are all there are taken.
_USUAL_TEXTS: tuple[tuple[str, ...], ...] = (
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("text",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
)

# Names of what examples are told apart by, for all tasks.
_USUAL_INPUTS: tuple[tuple[str, ...], ...] = (
    ("context", "question"),
    ("tokens",),
    ("words",),
    *_USUAL_TEXTS,
    *((name,) for name in ("source", "document", "article", "dialogue", "content", "image", "img")),
)
_INPUT_ROLES = ("text", "text_pair", "context", "question", "image")


def find_column(splits: DatasetDict, given: str | None, usual: Sequence[str]) -> str:
    """Return the name of a column: the given one, or else the first usual one that the training data has."""
    if given is not None:
        return given
    return next((name for name in usual if name in splits["train"].column_names), usual[0])


def find_text_columns(splits: DatasetDict, text: str | None, text_pair: str | None) -> dict[str, str]:
    """Return the columns of a text or a pair of texts, as :func:`take_columns` takes them.

    Args:
        splits: The data; the training split decides.
        text: The column of the text; the usual names, of a pair too, are tried when left out.
        text_pair: The column of the second text.
    """
    if text is not None:
        return {"text": text} | ({"text_pair": text_pair} if text_pair else {})
    there = set(splits["train"].column_names)
    found = next((usual for usual in _USUAL_TEXTS if there.issuperset(usual)), ("text",))
    second = text_pair or (found[1] if len(found) > 1 else None)
    return {"text": found[0]} | ({"text_pair": second} if second else {})


def find_input_columns(table: Dataset, settings: Mapping[str, Any]) -> list[str]:
    """Return the columns that a model reads, as far as they are known without the task.

    Args:
        table: The data.
        settings: Settings of the data, such as ``text_column``; usual names where there is none.
    """
    there = set(table.column_names)
    given = [settings[f"{role}_column"] for role in _INPUT_ROLES if settings.get(f"{role}_column")]
    usual = next((names for names in _USUAL_INPUTS if there.issuperset(names)), ())
    return [name for name in given or usual if name in there]


def take_columns(splits: DatasetDict, columns: Mapping[str, str]) -> DatasetDict:
    """Keep some columns and name them by their role; warn where splits share examples.

    Args:
        splits: The data.
        columns: The column of each role; ``translation.de`` is a part of a nested column.

    Raises:
        ValueError: A column is missing in one of the splits, or asked for twice.
    """
    wanted = list(columns.values())
    if len(set(wanted)) < len(wanted):
        raise InputError(
            f"{', '.join(columns)} are different columns, but {', '.join(wanted)} were given. Correct "
            f"{', '.join(f'data.{role}_column' for role in columns)}."
        )
    if any("." in name and name not in splits["train"].column_names for name in wanted):
        splits = splits.flatten()
    roles = {name: role for role, name in columns.items()}
    for split, table in splits.items():
        missing = next((name for name in wanted if name not in table.column_names), None)
        if missing is not None:
            raise InputError(
                f"The {split} data has no column {missing!r}; it has {', '.join(table.column_names)}. Name the right "
                f"one with data.{roles[missing]}_column=..."
            )
    renamed = {name: role for name, role in roles.items() if name != role}
    taken = splits.select_columns(wanted).rename_columns(renamed)
    warn_of_overlap(taken, [role for role in columns if role in _INPUT_ROLES])
    return taken
