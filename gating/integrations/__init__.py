"""Gates in other training programs: transformers' Trainer and those made from it."""

from gating.integrations.trainer import GatedTrainer, GatedTrainerMixin
from gating.integrations.wrappers import without_autocast

__all__ = ["GatedTrainer", "GatedTrainerMixin", "without_autocast"]
