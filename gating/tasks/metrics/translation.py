"""BLEU and chrF of generated texts, computed by sacrebleu."""

from collections.abc import Sequence
from typing import Any

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor
from torchmetrics import Metric

__all__ = ["SacreScore"]

_SCORES: dict[str, Any] = {"bleu": BLEU, "chrf": CHRF}


class SacreScore(Metric):
    """A corpus-level score of sacrebleu with its default settings (Post 2018, arXiv 1804.08771), from 0 to 1.

    Those of torchmetrics differ by points on small data: BLEU has no smoothing, and chrF another definition. The state
    sums sacrebleu's own statistics of each text, also over processes.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, name: str) -> None:
        """Create the score ``bleu`` or ``chrf``."""
        super().__init__()
        self._score = _SCORES[name]()
        num_counts = len(self._score._extract_corpus_statistics([""], [[""]])[0])
        self.add_state("counts", default=torch.zeros(num_counts, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add the statistics of texts with one reference each."""
        rows = self._score._extract_corpus_statistics(list(predictions), [list(references)])
        self.counts += torch.tensor(rows, dtype=torch.long, device=self.counts.device).sum(dim=0)

    def compute(self) -> Tensor:
        """Return the score of all texts."""
        score = self._score._compute_score_from_stats(self.counts.tolist()).score
        return torch.tensor(score / 100, dtype=torch.float64 if self.counts.device.type != "mps" else torch.float32)
