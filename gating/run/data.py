"""Data of a run or of an evaluation: loaded, encoded for a task, and the evaluation of a model on them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from datasets import DatasetDict
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from gating.compact.save import Processor
from gating.data.datamodule import ExampleDataModule
from gating.data.examples import Examples, as_examples
from gating.data.held_out import hold_out
from gating.distributed.collectives import is_rank_zero
from gating.gates import HeadGates
from gating.pruning.measure import measure_macs
from gating.run.build import RunObjects, load_source
from gating.run.settings import Settings
from gating.sharding.plan import reshard
from gating.tasks.base import Baseline, HasLoss, Prepared, Task
from gating.tracking.progress import bar
from gating.training.evaluation import Evaluation, count_evaluated, evaluate


@dataclass(frozen=True)
class RunData:
    """Data of a run, ready to train on; ``num_evaluated`` is the number of batches to evaluate, by split."""

    processor: Processor
    prepared: Prepared
    module: ExampleDataModule
    num_evaluated: Mapping[str, int]

    def is_part(self, split: str) -> bool:
        """Return whether the settings of the trainer limit the evaluation of a split."""
        return self.num_evaluated[split] < len(self.module.evaluation_dataloader(split))

    def in_one_process(self, trainer: Mapping[str, Any]) -> "RunData":
        """Return the data for this process alone, which loads the shards of the others from now on, too."""
        self.module.shard(1)
        return replace(self, num_evaluated=_num_evaluated(trainer, self.module))

    def evaluate(
        self,
        model: Any,
        split: str,
        *,
        task: Task,
        metrics: MetricCollection,
        baseline: Baseline | None = None,
        title: str,
    ) -> Evaluation:
        """Return the metrics of a model, and of a baseline if one is given, on a split."""
        total = self.num_evaluated[split]
        batches = bar(islice(self.module.evaluation_dataloader(split), total), title=title, total=total, unit="batches")
        return evaluate(model, batches, task=task, metrics=metrics, baseline=baseline)


def set_measured_macs(gates: HeadGates, model: PreTrainedModel, data: RunData) -> None:
    """Set the multiply-accumulates of gates of several units, for training examples of the median length."""
    batch = data.module.timing_batch("median", split="train")
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    gates.set_macs(measure_macs(model, gates, gates.blocks(model), batch))
    reshard(model)


def load_examples(settings: Settings, objects: RunObjects, *, needs_train: bool = True) -> Examples:
    """Load the examples, and draw missing splits from the training data, if there is any."""
    data, task = objects.data, objects.task
    examples = as_examples(load_source(data), target=data.source["_target_"], needs_train=needs_train)
    if "train" not in examples.splits:
        return examples
    has_classes = getattr(task, "has_classes", False)
    return hold_out(examples, settings=data.preparation, has_classes=has_classes, seed=settings.seed)


def encode_examples(
    examples: Examples,
    settings: Settings,
    objects: RunObjects,
    model: PreTrainedModel,
    *,
    num_processes: int = 1,
) -> RunData:
    """Encode examples for the task and a model, which needs no weights; return them with the processor."""
    task = objects.task
    if isinstance(task, HasLoss):
        examples = _draw_needed(examples, settings, num_processes=num_processes)
    processor = task.load_processor(objects.source, model, examples.splits)
    prepared = task.prepare(examples, processor, model, **objects.data.preparation)
    module = ExampleDataModule(
        prepared.splits, collate=prepared.collate, order_seed=settings.seed, **objects.data.batching
    )
    module.shard(num_processes)
    return RunData(processor, prepared, module, _num_evaluated(settings.trainer, module))


def _num_evaluated(trainer: Mapping[str, Any], module: ExampleDataModule) -> dict[str, int]:
    return {
        split: count_evaluated(trainer, split, num_batches=len(module.evaluation_dataloader(split)))
        for split in module.splits
        if split != "train"
    }


def _draw_needed(examples: Examples, settings: Settings, *, num_processes: int) -> Examples:
    """Return examples with no more training rows than the steps of a run take; a teacher embeds all of them first."""
    trainer, train = settings.trainer, examples.splits["train"]
    steps = max(0, int(trainer["max_steps"])) * trainer["accumulate_grad_batches"]
    needed = steps * settings.data.get("batch_size", 1) * num_processes
    if not 0 < needed < len(train):
        return examples
    rows = np.sort(np.random.default_rng(settings.seed).choice(len(train), needed, replace=False))
    if is_rank_zero():
        print(f"Of {len(train):,} training examples, {needed:,} are drawn, as many as trainer.max_steps takes.")
    return replace(examples, splits=DatasetDict({**examples.splits, "train": train.select(rows)}))
