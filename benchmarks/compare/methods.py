"""Methods and data sets of the comparison, as settings of train.py."""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["METHODS", "Data", "Method", "read_data", "read_method"]

# How a number of heads is asked for; what has no such place is run once, not for each number.
_NUMBER = "objective.num_heads={}"


@dataclass(frozen=True)
class Method:
    """A way to choose heads.

    Attributes:
        name: Its name in results.
        settings: The settings of train.py.
        title: Its name in tables.
    """

    name: str
    settings: tuple[str, ...]
    title: str

    @property
    def takes_number(self) -> bool:
        """Whether it takes a number of heads."""
        return not {"objective=none", "objective=l0"} & set(self.settings)

    def settings_for(self, num_heads: int | None) -> list[str]:
        """Return the settings that ask for a number of heads."""
        return [*self.settings, *([] if num_heads is None else [_NUMBER.format(num_heads)])]


METHODS = {
    method.name: method
    for method in (
        Method("none", ("objective=none",), "dense"),
        Method("budget", ("objective=budget",), "exact budget (default)"),
        Method("lagrangian", ("objective=lagrangian",), "Lagrangian (CoFi, 2022)"),
        Method("topk", ("objective=topk",), "differentiable subset, Gumbel (Li et al. 2021)"),
        Method(
            "topk_st",
            ("objective=topk", "objective.variant=straight_through"),
            "differentiable subset, straight-through",
        ),
        Method("importance", ("objective=importance",), "importance (Michel et al. 2019)"),
        Method("magnitude", ("objective=magnitude",), "magnitude"),
        Method("random", ("objective=random",), "random"),
        Method("l0", ("objective=l0",), "fixed price 1 (Voita et al. 2019)"),
        Method("l0_x10", ("objective=l0", "objective.price=10"), "fixed price 10"),
    )
}


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        name: Its name in results.
        settings: The settings of train.py.
    """

    name: str
    settings: tuple[str, ...]


def read_method(text: str) -> Method:
    """Read a method of the command line: one of ``METHODS``, or ``NAME:SETTING SETTING ...``.

    Raises:
        ValueError: There is no such method.
    """
    name, _, settings = text.partition(":")
    if settings:
        return Method(name, tuple(settings.split()), name)
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; choose from {', '.join(METHODS)}, or give 'NAME:SETTINGS'")
    return METHODS[name]


def read_data(text: str) -> Data:
    """Read a data set of the command line: a folder with a file for each split, or ``NAME:SETTING SETTING ...``.

    Raises:
        ValueError: The folder does not exist, or lacks a file.
    """
    if re.match(r"\w+:\S+=", text):
        name, _, settings = text.partition(":")
        return Data(name, tuple(settings.split()))
    folder = Path(text).expanduser().resolve()
    settings = ["data=files"]
    for split in ("train", "validation", "test"):
        files = sorted(folder.glob(f"{split}.*")) if folder.is_dir() else []
        if not files:
            raise ValueError(
                f"{text} is no data set: a folder needs the files train, validation and test (tsv, csv, ...)"
            )
        settings.append(f"data.{split}={files[0]}")
    return Data(folder.name, tuple(settings))
