"""Gates in other training programs: transformers' Trainer and those made from it."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from gating.errors import MissingPackageError

if importlib.util.find_spec("accelerate") is None:
    raise MissingPackageError("Trainers need the package accelerate: pip install 'head-gating[trainer]'")

from gating.integrations.trainer import GatedTrainer, GatedTrainerMixin
from gating.integrations.wrappers import without_autocast

if TYPE_CHECKING:
    from gating.integrations.sentence_trainers import GatedCrossEncoderTrainer, GatedSentenceTransformerTrainer

__all__ = [
    "GatedCrossEncoderTrainer",
    "GatedSentenceTransformerTrainer",
    "GatedTrainer",
    "GatedTrainerMixin",
    "without_autocast",
]


def __getattr__(name: str) -> Any:
    """Import the trainers of sentence-transformers when they are named: the package takes seconds, or is missing."""
    if name in ("GatedCrossEncoderTrainer", "GatedSentenceTransformerTrainer"):
        return getattr(importlib.import_module("gating.integrations.sentence_trainers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
