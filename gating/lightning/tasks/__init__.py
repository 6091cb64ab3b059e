"""The tasks: each file is one, and says what models, batches and metrics it takes."""

from gating.lightning.tasks.sequence_classification import SequenceClassification

__all__ = ["SequenceClassification"]
