"""Callbacks of a phase: observations of gates, scores and seconds, and the choice of the weights at its end.

Observations go to logs, the history and checkpoints; the weights are those of the best validation, and none after a
loss that is not finite.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from gating.distributed.collectives import all_reduce_max
from gating.errors import OperationError
from gating.objectives.gate_metrics import metrics_of, quantity_of
from gating.objectives.search import Search
from gating.report.results import History, Observation
from gating.report.summary import Summary
from gating.sharding.plan import check_same
from gating.storage.files import found_checkpoints
from gating.structure.edits import own_part
from gating.structure.layers import count_units
from gating.training.module import FineTuning

# What a checkpoint has of the best weights.
_SAVED = ("step", "score", "weights")


class GateMonitor(Callback):
    """Log the gates at each logged step; checkpoints get the history and the seconds of stages, for a resumed run."""

    def __init__(self, history: History, summary: Summary) -> None:
        """Args: ``history`` collects the state at each validation, and ``summary`` has the seconds."""
        self.history, self._summary = history, summary

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Log the numbers of open gates."""
        assert isinstance(pl_module, FineTuning)
        if pl_module.search is not None and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log_dict(pl_module.search.metrics())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the state to the history."""
        assert isinstance(pl_module, FineTuning)
        if trainer.sanity_checking:
            return
        history, search = self.history, pl_module.search
        step, metric = pl_module.step_in_run, float(trainer.callback_metrics[f"val/{pl_module.score.name}"])
        if search is None:
            has_cost = history.quantity == "cost"
            kept = sum(history.spent.values()) if has_cost else count_units(pl_module.model, history.quantity)
            history.observations.append(Observation(step, metric, kept, kept, kept))
            return
        check_same(search.gates.log_alpha, "The location of the gates")
        history.quantity, metrics = quantity_of(search.gates, search.objective), search.metrics()
        amounts = (metrics[name] for name in metrics_of(history.quantity))
        history.observations.append(Observation(step, metric, *amounts))

    def state_dict(self) -> dict[str, Any]:
        """Return history and seconds for a checkpoint."""
        return {**self.history.state_dict(), "seconds": self._summary.all_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load history and seconds from a checkpoint."""
        state = dict(state_dict)
        self._summary.earlier_seconds = state.pop("seconds", {})
        self.history.load_state_dict(state)


def log_kept_heads(
    loggers: Sequence[Logger], history: History, search: Search, *, kept: torch.Tensor | None, step: int
) -> None:
    """Log the gates after all steps of a search, with those of :meth:`Search.kept` as open, and note their cost."""
    metrics, gates = search.metrics(kept=kept), search.gates
    for logger in loggers:
        logger.log_metrics(metrics, step=step)
        logger.save()
    history.quantity = quantity_of(gates, search.objective)
    if history.quantity == "cost":
        history.spent = {unit: metrics[f"gates/cost/{unit}"] for unit in gates.units}


class BestWeights(Callback):
    """Callback that copies the trained weights at each validation with the best score so far.

    The copy is in the memory of the CPU and in the phase's checkpoints, so that a resumed phase has it, also after a
    return to an earlier checkpoint. Of equal scores the later one is the best: its learning rate is lower. The last
    step of the phase is validated, too; :meth:`consider` takes the weights before its first step.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.score = math.nan
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
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
        """Copy the weights of a module if their score after a step of the run is the best so far; NaN is the worst."""
        sign = 1 if module.score.higher_is_better else -1
        if self.step is None or math.isnan(self.score) or sign * score >= sign * self.score:
            self.step, self.score = step, score
            self.weights = {name: weight.detach().to("cpu", copy=True) for name, weight in _trained(module.model)}

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Copy the best weights into the model; without a validation they stay."""
        for name, weight in _trained(model):
            if name in self.weights:
                own_part(weight).copy_(own_part(self.weights[name]))

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights and their score for a checkpoint."""
        return {name: getattr(self, name) for name in _SAVED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the best weights and their score from a checkpoint."""
        vars(self).update({name: state_dict[name] for name in _SAVED})


def _trained(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the tensors that training changes: shared ones once, and none of the frozen weights beside adapters."""
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return [*weights, *model.named_buffers()]


class DivergedError(OperationError):
    """The loss is NaN or infinite; resuming from the last checkpoint would diverge again."""


class DivergenceStop(Callback):
    """Stop training in all ranks when the loss is NaN or infinite.

    The check synchronizes a GPU or ranks, and runs only every ``log_every_n_steps`` there.
    """

    def __init__(self, checkpoints: Path) -> None:
        """Args: ``checkpoints`` is the folder of the phase's checkpoints, for the message."""
        self._checkpoints = checkpoints
        # First step of the run with a loss that is not finite, or infinity; on the loss's device.
        self._first = torch.tensor(torch.inf)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Record whether the loss is finite, and check the record if due."""
        assert isinstance(pl_module, FineTuning)
        assert isinstance(outputs, Mapping)
        loss: Tensor = outputs["loss"]
        this_step = torch.where(loss.isfinite(), torch.inf, float(pl_module.step_in_run))
        self._first = torch.minimum(self._first.to(loss.device), this_step)
        is_cheap = loss.device.type == "cpu" and trainer.world_size == 1
        if is_cheap or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check()

    def _check(self, *_: Any, **__: Any) -> None:
        """Raise ``DivergedError`` if a loss of any rank was not finite; at the end, those of the last steps."""
        first = float(self._first)
        # The first step over all ranks, as the maximum of its negative.
        (negated,) = all_reduce_max(-(2**62) if math.isinf(first) else -int(first))
        if negated > -(2**62):
            saved = found_checkpoints(self._checkpoints)
            kept = f"The last good checkpoint is {saved[0]}" if saved else "There is no checkpoint before it"
            raise DivergedError(
                f"The loss is not a number at step {-negated} of the run: training has diverged. {kept}. Begin again "
                "with a lower optimizer.lr or trainer.gradient_clip_val, or with trainer.precision=32-true."
            )

    on_train_end = _check
