"""The weights with the best validation score of a phase."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from gating.structure.edits import own_part
from gating.training.module import FineTuning

__all__ = ["BestWeights"]


class BestWeights(Callback):
    """Callback that copies the trained weights at each validation with the best score so far.

    The copy is in the memory of the CPU and in the phase's checkpoints, so that a resumed phase has it, also after a
    return to an earlier checkpoint. Of equal scores the later one is the best: its learning rate is lower. The last
    step of the phase is validated, too; :meth:`consider` takes the weights before its first step.

    Attributes:
        step: Step of the run with the best score; None before a validation.
        score: The best score.
        num_validations: Number of validations.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.score = math.nan
        self.num_validations = 0
        self._weights: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let Lightning validate after the last step, which the interval of validations may miss."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights if their score is the best; all ranks have the same score."""
        assert isinstance(pl_module, FineTuning)
        if not trainer.sanity_checking:
            score = float(trainer.callback_metrics[f"val/{pl_module.score.name}"])
            self.consider(pl_module, score, step=pl_module.step_in_run)

    def consider(self, module: FineTuning, score: float, *, step: int) -> None:
        """Copy the weights of a module if their score after a step of the run is the best so far."""
        self.num_validations += 1
        if self.step is None or not _is_worse(score, self.score, higher_is_better=module.score.higher_is_better):
            self.step, self.score = step, score
            self._weights = {
                name: tensor.detach().to("cpu", copy=True) for name, tensor in _trained(module.model).items()
            }

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Copy the best weights into the model; without a validation they stay."""
        tensors = _trained(model)
        for name, weight in self._weights.items():
            own_part(tensors[name]).copy_(own_part(weight))

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights and their score for a checkpoint."""
        return {
            "step": self.step,
            "score": self.score,
            "num_validations": self.num_validations,
            "weights": self._weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the best weights and their score from a checkpoint."""
        self.step, self.score = state_dict["step"], state_dict["score"]
        self.num_validations, self._weights = state_dict["num_validations"], state_dict["weights"]


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes: shared ones once, and none of the frozen weights beside adapters."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return weights | dict(model.named_buffers())


def _is_worse(score: float, best: float, *, higher_is_better: bool) -> bool:
    """Return whether a score is worse than the best; NaN is worse than any number."""
    if math.isnan(score) or math.isnan(best):
        return math.isnan(score) and not math.isnan(best)
    return score < best if higher_is_better else score > best
