"""Gates in other training programs: transformers' Trainer and those made from it."""

from gating.integrations.trainer import GatedTrainer, GatedTrainerMixin

__all__ = ["GatedTrainer", "GatedTrainerMixin"]
