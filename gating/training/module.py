"""The Lightning module: one training step for every task and objective, with gates or without."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from transformers import PreTrainedModel

from gating.data.batches import Batch, model_inputs, num_targets
from gating.gates import HeadGates
from gating.objectives import Objective
from gating.report.score import Score
from gating.tasks.base import Task
from gating.training.distillation import Distillation
from gating.training.optimizers import AdamW, LinearSchedule

__all__ = ["FineTuning"]


class FineTuning(pl.LightningModule):
    """Trains a model and, where there are any, its gates."""

    _teacher: PreTrainedModel | None

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        task: Task,
        metrics: MetricCollection,
        score: Score,
        optimizer: AdamW,
        scheduler: LinearSchedule,
        total_steps: int,
        first_step: int = 0,
        gates: HeadGates | None = None,
        objective: Objective | None = None,
        distillation: Distillation | None = None,
        teacher: PreTrainedModel | None = None,
        seed: int = 0,
        compiler: str | None = None,
    ) -> None:
        """Put together what is trained.

        Args:
            model: The model; with gates if ``gates`` are given.
            task: What the task makes of outputs.
            metrics: Metrics of the task.
            score: Which of them to report.
            optimizer: Learning rates.
            scheduler: How they change.
            total_steps: Optimizer steps of the whole run, search and recovery.
            first_step: Steps of the run that went before this phase.
            gates: The model's gates.
            objective: What decides which gates close; given with the gates.
            distillation: How to learn from a teacher; given with the teacher.
            teacher: A dense model that answers the same question.
            seed: Seed of dropout and of the gates' noise.
            compiler: Backend of ``torch.compile`` for training steps, such as ``inductor``; none if left out.
        """
        super().__init__()
        self.model = model
        self.task = task
        self.metrics = metrics
        self.score = score
        # Lightning's own mean over processes is off where they have different numbers of examples.
        self._validation_loss = MeanMetric()
        self.objective = objective
        self._distillation = distillation
        # Not registered as a submodule: it is neither trained nor in checkpoints.
        object.__setattr__(self, "_teacher", teacher)
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._total_steps = total_steps
        self._first_step = first_step
        self._seed = seed
        self._has_gates = gates is not None
        self._compiled = _compile(model, compiler) if compiler else None

    @property
    def gates(self) -> HeadGates:
        """The model's gates, which are a submodule of it."""
        gates = self.model.head_gates
        assert isinstance(gates, HeadGates)
        return gates

    @property
    def step_in_run(self) -> int:
        """Optimizer steps of the run so far, over all phases."""
        return self._first_step + self.global_step

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return one optimizer over weights, gates and multipliers, and its schedule."""
        gates = list(self.gates.parameters()) if self._has_gates else []
        multipliers = list(self.objective.parameters()) if self.objective is not None else []
        apart = {id(parameter) for parameter in gates}
        weights = [p for p in self.model.parameters() if p.requires_grad and id(p) not in apart]
        # Lightning clips no gradients of a fused optimizer in mixed precision.
        fused = not isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = self._optimizer.build(weights, gates, multipliers, fused=fused)
        scheduler = self._scheduler.build(optimizer, first_step=self._first_step, total_steps=self._total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Move the teacher to the model's device."""
        if self._teacher is not None:
            self._teacher.to(self.device).eval()  # type: ignore[arg-type]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the schedule and the noise of this step from its number alone, so that a resumed run repeats it."""
        torch.manual_seed(self._seed + 1_000_003 * self.step_in_run + 1009 * batch_idx + self.global_rank)
        if self.objective is not None:
            self.objective.update(self.gates, self.global_step / max(1, self.trainer.max_steps))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the task plus the penalty on open gates."""
        # Only training is compiled; validation is a small part of a run, and would be compiled apart.
        inputs = model_inputs(batch)
        outputs = (self._compiled or self.model)(**inputs)
        loss: Tensor = outputs.loss
        if self._distillation is not None and self._teacher is not None:
            with torch.no_grad():
                taught = self._teacher(**inputs)
            loss = self._distillation.loss(loss, outputs, taught, inputs.get("labels"))
        task_loss = loss
        if self.objective is not None:
            penalty = self.objective.penalty(self.gates)
            loss = task_loss + penalty
            self.log_dict({"train/task_loss": task_loss.detach(), "train/penalty": penalty.detach()})
        self.log("train/loss", loss.detach())
        self._log_step()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect loss and metrics; gates take their deterministic values here."""
        outputs = self.model(**model_inputs(batch))
        self.task.update(self.metrics, batch, outputs=outputs, model=self.model)
        self._validation_loss.update(outputs.loss, weight=num_targets(batch))

    def on_validation_epoch_end(self) -> None:
        """Log loss and metrics of the whole validation set, over all processes."""
        values = {"loss": self._validation_loss.compute(), **self.metrics.compute()}
        self.log_dict({f"val/{name}": value for name, value in values.items()})
        self._validation_loss.reset()
        self.metrics.reset()
        self._log_step()

    def _log_step(self) -> None:
        """Number what is logged by the step in the run: each phase has a trainer of its own that counts from 0."""
        self.log("step", float(self.step_in_run))


def _compile(model: PreTrainedModel, backend: str) -> Callable[..., Any]:
    """Compile the call of a model, not the model: that stays as it is, also the names of its weights."""

    def call(**batch: Tensor) -> Any:
        return model(**batch)

    # Each phase has a model of another shape; the graphs of the last one would count against the limit.
    torch._dynamo.reset()
    # Batches are padded to lengths of their own, so the graph must not be one for each length.
    return torch.compile(call, backend=backend, dynamic=True)
