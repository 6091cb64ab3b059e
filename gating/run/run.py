"""What the stages of a run hand on to each other."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from filelock import BaseFileLock
from pytorch_lightning.loggers import Logger
from transformers import PreTrainedConfig, PreTrainedModel

from gating.compact.save import Processor
from gating.data.datamodule import ExampleDataModule
from gating.distributed.collectives import broadcast, is_rank_zero
from gating.models.adapters import Adapters
from gating.models.sources import ModelSource
from gating.objectives import Objective
from gating.report.history import History
from gating.report.summary import Summary
from gating.tasks.base import Prepared, Task
from gating.tracking.csv_log import keep_rows
from gating.training.callbacks.interruption import check_completed
from gating.training.checkpoints import AtomicCheckpointIO, checkpoints_in, why_unusable
from gating.training.distillation import Distillation
from gating.training.evaluation import evaluate
from gating.training.module import FineTuning

__all__ = ["Run"]


@dataclass
class Run:
    """A run under way.

    Attributes:
        folder: Where everything goes.
        checkpoints: Where its checkpoints go, a folder for each phase.
        seed: Of what is random in it.
        task: What the model is trained for.
        objective: What decides which heads close; None where every head stays.
        processor: The model's tokenizer or image processor.
        prepared: The examples and how they are judged.
        data: What serves them.
        source: Where the model comes from.
        adapters: What is trained of the model besides its gates.
        model: The model as it is now.
        dense_config: Its configuration with all heads.
        total_steps: Optimizer steps of the whole run.
        search_steps: How many of them are before the removal; 0 without gates.
        num_evaluated: How many batches of each split are evaluated.
        distillation: How to learn from a teacher, if at all.
        teacher: The dense model to learn from; None where there is none, or it is not trained yet.
        loggers: What metrics are sent to.
        history: What was seen at each validation.
        summary: What was measured.
        goes_on: Whether it was begun by an earlier process.
        lock: What tells other processes that this one is at the run.
        num_rows: Rows of the CSV file when the present phase began.
        began: When this process began to train, in seconds of ``time.monotonic``.
    """

    folder: Path
    checkpoints: Path
    seed: int
    task: Task
    objective: Objective | None
    processor: Processor
    prepared: Prepared
    data: ExampleDataModule
    source: ModelSource
    adapters: Adapters
    model: PreTrainedModel
    dense_config: PreTrainedConfig
    total_steps: int
    search_steps: int
    num_evaluated: Mapping[str, int]
    distillation: Distillation | None = None
    teacher: PreTrainedModel | None = None
    loggers: list[Logger] = field(default_factory=list)
    history: History = field(default_factory=History)
    summary: Summary = field(default_factory=Summary)
    goes_on: bool = False
    lock: BaseFileLock | None = None
    num_rows: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def recovery_steps(self) -> int:
        """Optimizer steps after the removal."""
        return self.total_steps - self.search_steps

    def last_checkpoint(self, phase: str) -> Path | None:
        """Return the last checkpoint of a phase that is as it was written; the same in all processes."""
        found: Path | None = None
        if is_rank_zero():
            for path in checkpoints_in(self.checkpoints / phase):
                wrong = why_unusable(path)
                if wrong is None:
                    found = path
                    break
                print(f"{path} is damaged ({wrong}); going back to the one before it.", file=sys.stderr)
        return broadcast(found)

    def fit(self, trainer: pl.Trainer, module: FineTuning, phase: str, *, batches_before: int) -> int:
        """Train a phase, from its last checkpoint on if it has one.

        Args:
            trainer: What trains.
            module: What is trained.
            phase: Name of the phase.
            batches_before: Batches of the run that went before the phase.

        Returns:
            How many steps the phase has taken, with those before an interruption.

        Raises:
            Unfinished: Training has ended before the last step.
        """
        checkpoint = self.last_checkpoint(phase)
        if checkpoint is None:
            keep_rows(self.loggers, self.num_rows)
        elif is_rank_zero():
            print(f"{phase} goes on from {checkpoint}")
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.data.start_after(batches_before)
        with self.summary.timed(phase):
            # from_pretrained leaves models in evaluation mode, and Lightning does not change that.
            trainer.fit(module.train(), datamodule=self.data, ckpt_path=checkpoint)
        check_completed(trainer, phase=phase)
        # Lightning moves models back to the CPU after training.
        module.model.to(trainer.strategy.root_device)  # type: ignore[arg-type]
        return trainer.global_step

    @contextmanager
    def adapted(self, model: PreTrainedModel) -> Iterator[None]:
        """Train a model's adapters, if it is to have some, for the length of a ``with`` block, in place.

        What is drawn at the beginning of a phase, here or by an objective for its gates, is the same whatever was
        drawn before; in a run that goes on that is something else.
        """
        pl.seed_everything(self.seed, verbose=False)
        with self.adapters.on(model):
            yield

    def measure_metric(
        self, key: str, title: str, *, splits: Sequence[str] = ("validation",), model: PreTrainedModel | None = None
    ) -> None:
        """Evaluate the model, or another one, as it is now; test data is looked at once, at the end."""
        # What takes long need not be measured before heads are removed: that changes nothing.
        metrics = self.prepared.metrics if key == "search" else self.prepared.all_metrics
        with self.summary.timed("evaluate"):
            for split in (split for split in splits if self.num_evaluated[split]):
                batches = islice(self.data.evaluation_dataloader(split), self.num_evaluated[split])
                values = evaluate(model or self.model, batches, task=self.task, metrics=metrics)
                self.summary.add_metrics(key, title, split, values)

    def probe_batch(self) -> dict[str, Any]:
        """Return eight long examples of the validation data, without what is right."""
        return {name: tensor.to(self.model.device) for name, tensor in self.data.probe_batch().items()}
