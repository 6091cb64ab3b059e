"""The registry of attention classes whose heads can be gated and removed, one row per layout."""

import re
from functools import lru_cache

from torch import nn

from .decoders import DECODERS
from .encoder_decoders import ENCODER_DECODERS
from .spec import AttentionSpec, SpecOrChoice
from .subclasses import original_class
from .text_encoders import TEXT_ENCODERS
from .vision_audio import VISION_AUDIO

__all__ = ["find_spec", "register_attention_spec"]

_SHIPPED: dict[str, SpecOrChoice] = {**TEXT_ENCODERS, **DECODERS, **ENCODER_DECODERS, **VISION_AUDIO}
_REGISTERED: dict[str, SpecOrChoice] = {}


def register_attention_spec(class_name: str, spec: SpecOrChoice) -> None:
    """Teach the library the layout of an attention class; a later row for the same pattern replaces it.

    Args:
        class_name: Name of the attention class, or a regular expression that matches it in full.
        spec: How the class lays out its heads, or a function that says it for a module of the class.

    Example:
        >>> register_attention_spec("MyAttention", AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out"))
    """
    _REGISTERED.pop(class_name, None)
    _REGISTERED[class_name] = spec
    _find_row.cache_clear()


def find_spec(module: nn.Module, *, shipped_only: bool = False) -> AttentionSpec | None:
    """Return the spec of an attention module, by its class or the nearest class that it inherits from, if there is one.

    A module may carry a spec of its own, ``attention_spec``: that is how structural discovery leaves its findings.

    Args:
        module: Any module.
        shipped_only: Whether to ignore what was discovered or registered by the user.
    """
    own = getattr(module, "attention_spec", None)
    if isinstance(own, AttentionSpec) and not shipped_only:
        return own
    row = _find_row(original_class(type(module)), shipped_only)  # type: ignore[arg-type]
    return row if row is None or isinstance(row, AttentionSpec) else row(module)


@lru_cache(maxsize=4096)
def _find_row(attention_class: type, shipped_only: bool) -> SpecOrChoice | None:
    # Newest first: what a user registers goes before what is shipped.
    rows = [] if shipped_only else [*reversed(_REGISTERED.items())]
    rows += _SHIPPED.items()
    for ancestor in attention_class.__mro__:
        for pattern, spec in rows:
            if re.fullmatch(pattern, ancestor.__name__):
                return spec
    return None
