"""Forward passes that replace those of transformers, where these need all heads."""

from collections.abc import Callable
from typing import Any

from torch import nn

from .classes import part

__all__ = ["original_class", "replaced_forward"]


def original_class(cls: Any) -> Any:
    """Return the class that :func:`subclass` made a class of, or the class itself."""
    return getattr(cls, "original_class", cls)


@part
def replaced_forward(_base: type[nn.Module], forward: Callable[..., Any]) -> dict[str, Any]:
    """Return the members of a subclass with another ``forward``."""
    return {"forward": forward}
