"""Parts of the loader that only some models need; the copy in a compact folder imports those of its model."""

from typing import Any

from .biases import PARTS as _BIASES
from .conv1d import PARTS as _CONV1D
from .experts import PARTS as _EXPERTS
from .forwards_images import PARTS as _FORWARDS_IMAGES
from .forwards_sounds import PARTS as _FORWARDS_SOUNDS
from .forwards_texts import PARTS as _FORWARDS_TEXTS
from .padding import PARTS as _PADDING
from .permuted import PARTS as _PERMUTED
from .returns import PARTS as _RETURNS
from .sharded import PARTS as _SHARDED
from .views import PARTS as _VIEWS

__all__ = ["PARTS"]

PARTS: dict[str, Any] = {
    **_BIASES,
    **_CONV1D,
    **_EXPERTS,
    **_FORWARDS_IMAGES,
    **_FORWARDS_SOUNDS,
    **_FORWARDS_TEXTS,
    **_PADDING,
    **_PERMUTED,
    **_RETURNS,
    **_SHARDED,
    **_VIEWS,
}
