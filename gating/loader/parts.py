"""All parts of the travelling code, registered by their import; a folder has those that its model needs."""

from gating.loader import (  # noqa: F401
    biases,
    conv1d,
    emptied,
    forwards_images,
    forwards_sounds,
    forwards_texts,
    layer_counts,
    padding,
    permuted,
    replaced,
    sharded,
    views,
)
from gating.loader.classes import PARTS

__all__ = ["PARTS"]
