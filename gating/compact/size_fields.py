"""Fields with numbers of heads and neurons in the configurations of transformers, by their names."""

import math
import re

__all__ = ["HEADS", "KEY_VALUE_HEADS", "new_width"]

# Names of fields, in the configurations of transformers, with a number of neurons, with this number as a multiple of
# the hidden size, and with a number of heads.
_WIDTH = re.compile(r"(?i)intermediate|inner|ffn|ff\b|_ff|hidden_dim|mlp|feed_?forward")
_RATIO = re.compile(r"(?i)ratio|multiple|expan")
HEADS = re.compile(r"(?i)heads?$")
KEY_VALUE_HEADS = re.compile(r"(?i)(key_value|kv)_heads?$")


def new_width(name: str, value: object, before: int, after: int, hidden: int) -> object:
    """Return the value of a field that gives a block its present number of neurons, or None.

    Example:
        >>> new_width("intermediate_size", 64, 64, 48, 16), new_width("mlp_ratio", 4.0, 64, 48, 16)
        (48, 3.0)
    """
    if _WIDTH.search(name) and not isinstance(value, bool) and value in (before, None):
        return after
    if _WIDTH.search(name) and isinstance(value, list) and value and all(item == before for item in value):
        return [after] * len(value)
    if not (_RATIO.search(name) and type(value) in (int, float)):
        return None
    ratio = after / hidden
    # Classes round the product down.
    ratio = ratio if int(hidden * ratio) == after else math.nextafter(ratio, math.inf)
    return int(ratio) if isinstance(value, int) and ratio.is_integer() else ratio
