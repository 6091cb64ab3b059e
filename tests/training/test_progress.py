"""The steps of a phase, and why it has ended early."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping

from gating.training.module import FineTuning
from gating.training.progress import PhaseProgressBar, end_reason


def test_a_phase_counts_its_steps():
    module = FineTuning.__new__(FineTuning)
    vars(module)["search"] = None
    state = {"max_steps": 100, "global_step": 0, "log_every_n_steps": 10}
    trainer, bar = SimpleNamespace(**state, callback_metrics={"train/loss": 0.5}), PhaseProgressBar("search")
    bar.on_train_start(trainer, module)
    for batch in range(4 * 30):  # four batches a step
        trainer.global_step = (batch + 1) // 4
        bar.on_train_batch_end(trainer, module)
    assert (bar._steps.n, bar._steps.total, bar._steps.postfix) == (30, 100, "loss 0.500")
    bar.on_train_end()


@pytest.mark.parametrize("options", [{"stopping_threshold": 0.5}, {"divergence_threshold": 0.05}, {"patience": 1}, {}])
@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("has_message", [True, False])
def test_an_early_stop_is_told_from_none(options, epoch, has_message):
    callback = EarlyStopping("val/loss", **options)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    trainer = SimpleNamespace(callback_metrics={}, fast_dev_run=False, should_stop=False, current_epoch=epoch)
    vars(trainer).update(strategy=strategy, callbacks=[callback], lightning_module=None)
    assert end_reason(trainer) is None
    for value in (0.1, 0.2):
        trainer.callback_metrics = {"val/loss": torch.tensor(value)}
        if not trainer.should_stop:
            callback._run_early_stopping_check(trainer)
    if not has_message:  # Lightning 2.5 keeps none.
        vars(callback).pop("stopping_reason_message", None)
    assert trainer.should_stop == bool(options)
    assert bool(end_reason(trainer)) == bool(options)
