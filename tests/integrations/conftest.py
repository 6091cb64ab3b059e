"""A tiny classifier and a trainer with gates for it."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import gating
from gating.integrations import GatedTrainer
from tests.support.timers import KnownTimes

CONFIG = BertConfig(
    vocab_size=45,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
)


# In transformers before it had a name of its own.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
ARGUMENTS = {
    "max_steps": 16,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "logging_steps": 2,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "log_level": "error",
}


def examples(number: int, *, seed: int) -> list[dict[str, torch.Tensor]]:
    """Return sequences of 8 tokens whose first one is the label."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(number):
        tokens = torch.randint(10, 45, (8,), generator=generator)
        tokens[0] = 2 + index % 2
        rows.append({"input_ids": tokens, "labels": torch.tensor(index % 2)})
    return rows


def make_classifier(seed: int = 0, *, config: Mapping[str, Any] | None = None) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    # Of its own: removal writes into it.
    own = deepcopy(CONFIG)
    own.update(dict(config or {}))
    return BertForSequenceClassification(own)


def make_trainer(folder: Path, *, cls: type[Trainer] = GatedTrainer, model: Any = None, **options: Any) -> GatedTrainer:
    """Return a trainer of 16 steps, 12 of them the search; options of the training arguments are in ``args``."""
    arguments = {**ARGUMENTS, "output_dir": str(folder), "save_steps": 4, **options.pop("args", {})}
    if cls is GatedTrainer or issubclass(cls, GatedTrainer):
        options = {"objective": gating.ExactBudget(num_heads=5), "recovery": 0.25, **options}
    if "model_init" not in options:
        options["model"] = make_classifier() if model is None else model
    options = {"train_dataset": examples(64, seed=1), "eval_dataset": examples(16, seed=2), **options}
    return cls(args=TrainingArguments(**arguments), **options)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.fixture
def assert_same():
    def check(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name

    return check


@pytest.fixture
def known_times(monkeypatch):
    """Let a copy take a time that the number of its gates gives: of tiny models on a busy machine it would be noise."""
    for module in ("gating.pruning.latency_costs", "gating.integrations.budgets"):
        known = KnownTimes(lambda kept: 1 / (0.3 + 0.7 * float(kept.float().mean())))
        monkeypatch.setattr(f"{module}.CopyTimer", lambda *_, known=known, **__: known)
