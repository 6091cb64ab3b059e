import pytest
import pytorch_lightning as pl
import torch
from tiny_run import make_model_folder
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification

import gating
from gating.history import History
from gating.lightning.callbacks import GateMonitor
from gating.lightning.evaluation import evaluate
from gating.lightning.module import FineTuning
from gating.lightning.optimizers import AdamW, LinearSchedule
from gating.lightning.tasks import SequenceClassification

BATCH = {"input_ids": torch.arange(5, 17).view(2, 6), "labels": torch.tensor([0, 1])}
TASK = SequenceClassification()


def make_module(folder, *, gated: bool = True, **options) -> FineTuning:
    model = BertForSequenceClassification.from_pretrained(folder).train()
    gates = objective = None
    if gated:
        gates, objective = gating.inject_gates(model), gating.ExactBudget(num_heads=4)
        objective.attach(gates)
    return FineTuning(
        model,
        task=TASK,
        metrics=TASK.metrics(["a", "b"]),
        optimizer=AdamW(lr=1e-3),
        scheduler=LinearSchedule(),
        total_steps=8,
        gates=gates,
        objective=objective,
        **options,
    )


def fit(module: FineTuning, *, steps: int, callbacks=(), ckpt_path=None, folder="."):
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=steps,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    loader = DataLoader([BATCH] * 2, batch_size=None)
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("module") / "model")


def test_weights_and_gates_train_with_rates_of_their_own(folder):
    module = make_module(folder)
    before = module.model.bert.encoder.layer[0].attention.self.query.weight.clone()
    log_alpha = module.gates.log_alpha.clone()
    trainer = fit(module, steps=6)
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert set(groups) == {"weights", "gates"}
    assert groups["gates"]["params"][0] is module.gates.log_alpha
    assert all(p is not module.gates.log_alpha for p in groups["weights"]["params"])
    assert (module.gates.log_alpha - log_alpha).abs().max() > 0.1
    assert 0 < (module.model.bert.encoder.layer[0].attention.self.query.weight - before).abs().max() < 0.05


def test_noise_of_a_step_depends_on_its_number_alone(folder):
    def loss_after(disturbance: int) -> torch.Tensor:
        module = make_module(folder)
        torch.manual_seed(disturbance)
        fit(module, steps=3)
        return module.gates.log_alpha.detach()

    assert torch.equal(loss_after(1), loss_after(2))


def test_resumed_equals_uninterrupted(folder, tmp_path):
    whole = make_module(folder)
    fit(whole, steps=6)
    first = make_module(folder)
    trainer = fit(first, steps=6, callbacks=[StopAfter(4)])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_module(folder)
    fit(resumed, steps=6, ckpt_path=tmp_path / "half.ckpt")
    for (name, one), (_, other) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


class StopAfter(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.step


def test_history_is_kept_in_checkpoints(folder):
    history = History()
    monitor = GateMonitor(history)
    fit(make_module(folder), steps=4, callbacks=[monitor])
    assert [look.step for look in history.looks] == [2, 4]
    assert set(history.gate_values[0]) == {f"encoder.layer.{i}.attention.self" for i in range(3)}
    other = GateMonitor(History())
    other.load_state_dict(monitor.state_dict())
    assert other.history == history


def test_recovery_counts_on_from_the_search(folder):
    history = History()
    module = make_module(folder, gated=False, first_step=5)
    fit(module, steps=2, callbacks=[GateMonitor(history)])
    assert [look.step for look in history.looks] == [7]
    assert history.looks[0].open == 12


def test_evaluation_uses_deterministic_gates_and_leaves_the_mode(folder):
    module = make_module(folder)
    module.train()
    metrics = TASK.metrics(["a", "b"])
    results = {evaluate(module.model, [BATCH], task=TASK, metrics=metrics)["accuracy"] for _ in range(3)}
    assert len(results) == 1
    assert module.model.training
