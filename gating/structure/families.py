"""The registry of attention classes whose heads can be gated and removed, one row for each layout.

To add a family, add its row to a table in one of the files ``families_*.py``, and a tiny model to
``tests/support/family_models.py``.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from torch import nn

from .attention_spec import AttentionSpec, Row
from .families_audio import AUDIO_FAMILIES
from .families_common import COMMON_FAMILIES
from .families_detection import DETECTION_FAMILIES
from .families_media import MEDIA_FAMILIES
from .families_special import SPECIAL_FAMILIES
from .families_text import TEXT_FAMILIES
from .subclasses import original_class

__all__ = ["find_spec", "register_attention_spec"]

_SHIPPED: dict[str, Row] = {
    **TEXT_FAMILIES,
    **MEDIA_FAMILIES,
    **COMMON_FAMILIES,
    **SPECIAL_FAMILIES,
    **AUDIO_FAMILIES,
    **DETECTION_FAMILIES,
}
_REGISTERED: dict[str, Row] = {}


def register_attention_spec(class_name: str, spec: AttentionSpec | Callable[[nn.Module], AttentionSpec | None]) -> None:
    """Register the layout of an attention class; a later row for the same pattern replaces the earlier one.

    Args:
        class_name: Name of the attention class, or a regular expression that matches it in full.
        spec: The layout of its heads, or a function that returns the layout for a module of the class, or None.

    Example:
        >>> register_attention_spec("MyAttention", AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out"))
    """
    _REGISTERED.pop(class_name, None)
    _REGISTERED[class_name] = spec
    _find_row.cache_clear()


def find_spec(module: nn.Module, *, shipped_only: bool = False) -> AttentionSpec | None:
    """Return the spec of an attention module, or None, by its class or the nearest ancestor with a row.

    An attribute ``attention_spec`` of the module, where discovery stores its findings, takes precedence.

    Args:
        module: Any module.
        shipped_only: Whether to ignore discovered specs and those that the user registered.

    Example:
        >>> find_spec(nn.Linear(2, 2)) is None
        True
    """
    own = getattr(module, "attention_spec", None)
    if isinstance(own, AttentionSpec) and not shipped_only:
        return own
    row = _find_row(original_class(type(module)), shipped_only)  # type: ignore[arg-type]
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
