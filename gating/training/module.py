"""The Lightning module: one training step for every task and objective, with or without gates."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from transformers import PreTrainedModel

from gating.data.examples import Batch, model_inputs, num_rows, num_targets
from gating.distributed.collectives import all_reduce_sum
from gating.objectives.search import Search
from gating.report.score import Score
from gating.sharding.plan import is_sharded, reshard
from gating.tasks.base import HasLoss, Task
from gating.training.optimizers import OptimizerSettings, WarmupSchedule

if TYPE_CHECKING:
    from gating.teachers.teacher import Teacher


class FineTuning(pl.LightningModule):
    """Fine-tuning of a model and, if it has gates, of its gates."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        task: Task,
        metrics: MetricCollection,
        score: Score,
        optimizer: OptimizerSettings,
        scheduler: WarmupSchedule,
        scheduled: tuple[int, int],
        first_step: int = 0,
        search: Search | None = None,
        teacher: "Teacher | None" = None,
        seed: int = 0,
        compiler: str | None = None,
    ) -> None:
        """Set up the training of one phase, which begins after ``first_step`` steps of the run.

        ``scheduled`` are the numbers of steps of the run at which the schedule of the learning rate begins and ends.
        ``compiler`` is a backend of ``torch.compile`` for training steps, such as ``inductor``; None for eager mode.
        """
        super().__init__()
        self.model, self.task, self.metrics, self.score = model, task, metrics, score
        # Lightning's mean over ranks is wrong if they have different numbers of examples.
        self._validation_loss = MeanMetric()
        self.search = search
        # Registered, so that its multipliers and buffers are on the device and in checkpoints; gates are in the model.
        self.objective = None if search is None else search.objective
        self._teacher, self._optimizer, self._scheduler = teacher, optimizer, scheduler
        self._scheduled, self._first_step, self._seed = scheduled, first_step, seed
        self._compiled: Callable[..., Any] | None = None
        if compiler:
            # Graphs of the previous phase, whose model has another shape, would count against the cache limit.
            torch._dynamo.reset()
            # Batches are padded to different lengths: one dynamic graph instead of one for each. Module and names stay.
            self._compiled = torch.compile(lambda **batch: model(**batch), backend=compiler, dynamic=True)

    @property
    def step_in_run(self) -> int:
        """Number of optimizer steps of the run so far, over all phases."""
        return self._first_step + self.global_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return one optimizer over weights, gates and multipliers, and its scheduler."""
        gates = None if self.search is None else self.search.gates
        optimizer = self._optimizer.build(self.model, gates=gates, objective=self.objective)
        begun, ended = self._scheduled
        scheduler = self._scheduler.build(optimizer, first_step=self._first_step - begun, total_steps=ended - begun)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_model(self) -> None:
        """Do nothing: a sharded model is cut as it is loaded. Lightning's strategy for it asks for this method."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average the gradients that FSDP2 leaves out, once for each step."""
        if is_sharded(self.model):
            from gating.sharding.plan import average_gradients

            average_gradients(self.parameters())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as Lightning does, shards and whole ones together."""
        if not is_sharded(self.model):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            limit = "max_value" if gradient_clip_algorithm == "value" else "max_norm"
            from gating.sharding.plan import clip_gradients

            clip_gradients(self.parameters(), **{limit: float(gradient_clip_val)})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed this batch and update the objective from the step number alone, so that a resumed run repeats them."""
        torch.manual_seed(self._seed + 1_000_003 * self.step_in_run + 1009 * batch_idx + self.global_rank)
        if self.search is not None:
            self.search.update(self.global_step / max(1, self.trainer.max_steps))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End a search whose gates have converged, which is checked at every logged step."""
        if self.search is not None:
            step, last = self.global_step, self.trainer.max_steps
            is_due = step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
            # After the last step Lightning ends by itself; told to stop, it would validate once more.
            if self.search.check_end(step, last, is_due=is_due) is not None and step < last:
                self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the search; that of gates and objective is the module's."""
        checkpoint["search"] = None if self.search is None else self.search.state_dict(modules=False)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the state of the search."""
        if self.search is not None:
            self.search.load_state_dict(checkpoint["search"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the task plus the penalty on open gates, a scalar."""
        # Validation is not compiled: it would be a second graph for a small part of the run.
        inputs, teacher = model_inputs(batch), self._teacher
        # First: the teacher may be the model itself, of which gradient checkpointing repeats the last pass.
        answers = None if teacher is None else teacher(inputs)
        if teacher is not None:
            reshard(self.model if teacher.is_student else teacher.model)
        outputs = (self._compiled or self.model)(**inputs, **({} if teacher is None else teacher.options))
        loss, weight = self._loss(outputs, batch), self._weight_among_ranks(batch, num_targets)
        if teacher is None or answers is None:
            loss = weight * loss
        else:
            factors = weight, self._weight_among_ranks(batch, num_rows) if teacher.options else 1.0
            loss = teacher.loss(loss, outputs, inputs, model=self.model, answers=answers, factors=factors)
        if self.search is not None:
            penalty = self.search.penalty()
            self.search.observe(loss)
            self.log_dict({"train/task_loss": loss.detach(), "train/penalty": penalty.detach()})
            loss = loss + penalty
        self.log("train/loss", loss.detach())
        # The x-axis of the logs: the trainer of each phase counts from 0.
        self.log("step", float(self.step_in_run))
        return loss

    def _loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the loss of a batch, the task's own or that of the model's head, a scalar."""
        if isinstance(self.task, HasLoss):
            return self.task.loss(outputs, batch, model=self.model)
        loss: Tensor = outputs.loss
        return loss

    def _weight_among_ranks(self, batch: Batch, count: Callable[[Batch], int]) -> float:
        """Return the factor by which ranks, whose numbers of tokens differ, have the mean gradient of one process."""
        if self.trainer.world_size == 1:
            return 1.0
        own = count(batch)
        return own * self.trainer.world_size / max(1, all_reduce_sum(own))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update loss and metrics, with gates at their deterministic values."""
        outputs = self.model(**model_inputs(batch))
        self.task.update(self.metrics, batch, outputs=outputs, model=self.model)
        self._validation_loss.update(self._loss(outputs, batch), weight=num_targets(batch))

    def on_validation_epoch_end(self) -> None:
        """Log loss and metrics of the whole validation set, over all ranks."""
        values = {"loss": self._validation_loss.compute(), **self.metrics.compute()}
        self.log_dict({f"val/{name}": value for name, value in values.items()})
        self._validation_loss.reset()
        self.metrics.reset()
        # Callbacks that come next read the weights.
        reshard(self.model)
        self.log("step", float(self.step_in_run))
