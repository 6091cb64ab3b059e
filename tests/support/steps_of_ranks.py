"""Some training steps of a tiny model with fixed gates, in one process or two; see test_two_processes.py."""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, BertForSequenceClassification

import gating
from gating.data.datamodule import ExampleDataModule
from gating.data.sources import Examples
from gating.distributed.collectives import rank
from gating.models.sources import Pretrained, make_meta_model
from gating.report.score import Score
from gating.tasks import SequenceClassification
from gating.training.module import FineTuning
from gating.training.optimizers import AdamW, WarmupSchedule
from tests.support.metrics import class_metrics

TASK = SequenceClassification()
NUM_STEPS = 3
# Gates learn from the first step, without a wait for the loss to fall.
FIXED = gating.BudgetSchedule(start=0.13)


class Recorder(pl.Callback):
    def __init__(self):
        self.losses, self.gradients = [], []

    def on_train_start(self, trainer, pl_module):
        pl_module.search.gates.eval()  # deterministic values: only the processes differ

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append({name: p.grad.clone() for name, p in pl_module.named_parameters()})


def make_data(folder: Path, batch_size: int) -> ExampleDataModule:
    texts = [" ".join(f"word{(7 * i + j) % 40}" for j in range(1 + i % 9)) for i in range(24)]
    rows = Dataset.from_dict({"text": texts, "label": ["a", "b", "b"] * 8})
    splits = DatasetDict(train=rows, validation=rows.select(range(9)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    meta_model = make_meta_model(Pretrained(str(folder)), TASK.auto_class)
    prepared = TASK.prepare(Examples(splits), tokenizer, meta_model, max_length=12)
    return ExampleDataModule(prepared.splits, collate=prepared.collate, batch_size=batch_size, eval_batch_size=3)


def train_some_steps(folder: Path, *, num_processes: int, batch_size: int) -> dict:
    """Return losses, gradients of each step and validation metrics."""
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    for block in gating.find_attention_blocks(model):
        block.output_projection.weight.data *= 30  # or heads, and so gates, would hardly matter in a random model
    gates = gating.inject_gates(model)
    torch.nn.init.normal_(gates.log_alpha)
    module = FineTuning(
        model,
        task=TASK,
        metrics=class_metrics(["accuracy"], num_classes=2),
        score=Score("accuracy"),
        optimizer=AdamW(lr=1e-3),
        scheduler=WarmupSchedule(),
        scheduled=(0, NUM_STEPS),
        search=gating.Search(gates, gating.ExactBudget(num_heads=6, schedule=FIXED)),
    )
    data = make_data(folder, batch_size)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=num_processes,
        strategy="ddp" if num_processes > 1 else "auto",
        max_epochs=1,
        max_steps=NUM_STEPS,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=[recorder],
    )
    data.shard(num_processes, index=rank())
    module.train()
    trainer.fit(module, datamodule=data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return {"losses": recorder.losses, "gradients": recorder.gradients, "metrics": metrics}


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = train_some_steps(Path(sys.argv[1]), num_processes=2, batch_size=4)
    torch.save(result, Path(sys.argv[2]) / f"rank-{rank()}.pt")
