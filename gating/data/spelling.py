"""Spellings of one name: with other case, spaces, invisible characters, or other characters of the same look."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

__all__ = ["groups_of_spellings", "hint_at_spelling", "is_blank", "is_spelled_in", "other_spelling"]

# Characters without a look that Unicode does not count as format characters: joiners, fillers and variation selectors.
_INVISIBLE = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10)}
_INVISIBLE |= set(range(0xE0100, 0xE01F0))
# Cyrillic and Greek letters that look like Latin ones, an empty Braille cell that looks like a space, and the hyphens,
# minus signs, slashes and quotation marks of typography.
_TWINS = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеѕіјорсухԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧο\u2800",  # noqa: RUF001
    "ABESIJKMHOPCTYXaesijopcyxqwABEZHIKMNOPTYXo ",
)
_TWINS |= str.maketrans("\u2010\u2012\u2013\u2212\u2044\u2215\u2018\u2019\u02bc\u2032\u201c\u201d", "----//''''\"\"")


def groups_of_spellings(names: Iterable[str]) -> list[list[str]]:
    r"""Return the names that are spellings of one name, in groups of two or more.

    Example:
        >>> groups_of_spellings(["tea", "Tea\u200b", "milk"])
        [['tea', 'Tea\u200b']]
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_look(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def other_spelling(name: str, names: Iterable[str]) -> str | None:
    """Return the first of some names that is another spelling of a name; None if there is none."""
    look = _look(name)
    return next((other for other in names if other != name and _look(other) == look), None)


def hint_at_spelling(name: str, names: Iterable[str]) -> str | None:
    r"""Return a sentence that tells a name from another spelling, with its hidden characters; None if there is none.

    Example:
        >>> hint_at_spelling("good\u200b", ["good", "bad"])
        "It looks like 'good' and is 'good\\u200b': spell both the same way."
    """
    other = other_spelling(name, names)
    return None if other is None else f"It looks like {other!a} and is {name!a}: spell both the same way."


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character."""
    return not _look(text)


def is_spelled_in(name: str, text: str) -> bool:
    """Return whether a text has a name in another spelling, or in this one."""
    return _look(name) in _look(text)


def _look(name: str) -> str:
    """Return a form of a name that is equal for all spellings."""
    # Compatible characters, such as those of full width, become the usual ones; no-break spaces become spaces.
    text = unicodedata.normalize("NFKC", name)
    visible = "".join(character for character in text if not _is_invisible(character))
    return " ".join(unicodedata.normalize("NFKC", visible.translate(_TWINS).casefold()).split())


def _is_invisible(character: str) -> bool:
    is_control = unicodedata.category(character) in ("Cf", "Cc") and not character.isspace()
    return is_control or ord(character) in _INVISIBLE
