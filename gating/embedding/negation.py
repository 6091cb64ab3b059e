"""Negations of English sentences by rules: texts that differ in little, which plain sentences rarely do."""

import random
import re

__all__ = ["negate"]

_AUXILIARY = re.compile(
    r"\b(is|are|was|were|can|could|will|would|has|have|had|should|must|may|might|does|do|did)\b(?!['\u2019])"
)
# A second negation would take the first one back.
_NEGATED = re.compile(
    r"\b(not|no|never|none|nobody|nothing|nowhere|neither|nor|cannot|without)\b|n['\u2019]t\b", re.IGNORECASE
)
# Longer texts are often cut before their negation.
_MOST_WORDS = 25
_DETERMINER = re.compile(r"(an?|the|some|one|two|three|many)\s+(?!of\b)(?=\w)", re.IGNORECASE)


def negate(text: str, draw: random.Random) -> str | None:
    """Return a text with a negation, one of those that the rules make; None if they do not fit, and for long texts.

    "A man is singing." becomes "A man is not singing." or "No man is singing.", and "A man on stage" becomes "No man on
    stage" or "There is no man on stage". Not all are good English; a teacher embeds them as well.

    Example:
        >>> negate("he can swim", random.Random(0))
        'he can not swim'
    """
    if len(text.split()) > _MOST_WORDS or _NEGATED.search(text):
        return None
    forms = []
    has_auxiliary = _AUXILIARY.search(text) is not None
    if has_auxiliary:
        forms.append(_AUXILIARY.sub(r"\1 not", text, count=1))
    found = _DETERMINER.match(text)
    if found:
        rest, beginnings = text[found.end() :], ("No",) if has_auxiliary else ("No", "There is no")
        forms += [f"{one if text[0].isupper() else one.lower()} {rest}" for one in beginnings]
    return draw.choice(forms) if forms else None
