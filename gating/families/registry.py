"""The registry of attention classes whose heads can be gated and removed, one row for each layout.

To add a family, add its name to a layout in ``shared.py``, or a row to the table in another file of this folder, and a
tiny model to ``tests/support/family_models.py``.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from gating.families.layouts import AttentionSpec, Row, check_row, read_spec
from gating.families.media import DETECTION_FAMILIES, MEDIA_FAMILIES
from gating.families.shared import SHARED_FAMILIES
from gating.families.text import SPECIAL_FAMILIES, TEXT_FAMILIES
from gating.loader.replaced import original_class

__all__ = ["find_spec", "register_attention_spec", "registered_spec"]

_SHIPPED: dict[str, Row] = {
    **SHARED_FAMILIES,
    **TEXT_FAMILIES,
    **MEDIA_FAMILIES,
    **SPECIAL_FAMILIES,
    **DETECTION_FAMILIES,
}
_REGISTERED: dict[str, Row] = {}


def register_attention_spec(class_name: str, spec: AttentionSpec | Callable[[nn.Module], AttentionSpec | None]) -> None:
    """Register the layout of an attention class; a later row for the same pattern replaces the earlier one.

    Args:
        class_name: Name of the attention class, or a regular expression that matches it in full.
        spec: The layout of its heads, or a function that returns the layout for a module of the class, or None.

    Raises:
        ValueError: The name is no regular expression, or the spec has no pairs of paths and layouts.

    Example:
        >>> register_attention_spec("MyAttention", AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out"))
    """
    returns = getattr(spec, "returns", "pair")
    check_row(class_name, () if callable(spec) else getattr(spec, "projections", spec), returns=returns)
    _REGISTERED.pop(class_name, None)
    _REGISTERED[class_name] = spec
    _find_row.cache_clear()


def find_spec(module: nn.Module, *, shipped_only: bool = False) -> AttentionSpec | None:
    """Return the spec of an attention module, or None, by its class or the nearest ancestor with a row.

    An attribute ``attention_spec`` of the module, where discovery stores its findings, takes precedence.

    Args:
        module: Any module.
        shipped_only: Whether to ignore discovered specs and those that the user registered.
    """
    own: Any = getattr(module, "attention_spec", None)
    if isinstance(own, dict):
        # A compact folder stores layouts as plain values.
        own = module.attention_spec = read_spec(own, AttentionSpec)
    if isinstance(own, AttentionSpec) and not shipped_only:
        return own
    return registered_spec(module, shipped_only=shipped_only)


def registered_spec(module: nn.Module, *, shipped_only: bool = False) -> AttentionSpec | None:
    """Return the spec in the row of a module's class, or None; the arguments are those of :func:`find_spec`."""
    row = _find_row(original_class(type(module)), shipped_only)
    return row if row is None or isinstance(row, AttentionSpec) else row(module)


@lru_cache(maxsize=4096)
def _find_row(attention_class: type, shipped_only: bool) -> Row | None:
    # Newest first: rows of the user precede those of the package.
    rows = [] if shipped_only else [*reversed(_REGISTERED.items())]
    rows += _SHIPPED.items()
    for ancestor in attention_class.__mro__:
        for pattern, spec in rows:
            if re.fullmatch(pattern, ancestor.__name__):
                return spec
    return None
