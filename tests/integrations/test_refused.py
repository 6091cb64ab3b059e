"""Refusals of a trainer with gates, before anything is trained or changed."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer

import gating
from gating.compact.stock import StockError
from gating.errors import InputError, MissingFileError, OperationError
from gating.integrations.checks import check_strategy
from tests.integrations.conftest import make_classifier, make_trainer


def test_what_cannot_work_is_said_before_anything_changes(tmp_path):
    with pytest.raises(InputError, match=r"recovery=1.0 is not a share"):
        make_trainer(tmp_path, recovery=1.0)
    model = make_classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(InputError, match=r"optimizers=\(optimizer, None\)"):
        make_trainer(tmp_path, model=model, optimizers=(optimizer, scheduler))
    assert not hasattr(model, "head_gates")
    with pytest.raises(InputError, match="num_heads"):
        make_trainer(tmp_path, model=model, objective=gating.ExactBudget(num_heads=13))
    assert not hasattr(model, "head_gates")
    gated = make_classifier()
    gating.inject_gates(gated)
    with pytest.raises(InputError, match="gate_options"):
        make_trainer(tmp_path, model=gated, gate_options={"units": "neurons"})


def test_multipliers_need_an_optimizer_that_ascends(tmp_path):
    trainer = make_trainer(tmp_path, objective=gating.Lagrangian(num_heads=5), args={"optim": "adafactor"})
    with pytest.raises(InputError, match="maximize"):
        trainer.train()


@pytest.mark.runs
def test_phases_in_a_wrong_order_are_refused(tmp_path):
    trainer = make_trainer(tmp_path / "checkpoints")
    with pytest.raises(OperationError, match="before the search is complete"):
        trainer.finalize()
    with pytest.raises(OperationError, match="still has gates"):
        trainer.save_compact(tmp_path / "compact")
    trainer.train()
    with pytest.raises(OperationError, match=r"call finalize\(\)"):
        trainer.train()
    trainer.finalize()
    with pytest.raises(OperationError, match="have been removed"):
        trainer.finalize()


def test_a_folder_that_is_not_empty_is_refused_before_training(tmp_path):
    (tmp_path / "compact").mkdir()
    (tmp_path / "compact" / "notes.txt").write_text("mine")
    trainer = make_trainer(tmp_path / "checkpoints")
    with pytest.raises(FileExistsError, match="not empty"):
        trainer.train_and_compact(tmp_path / "compact")
    assert trainer.state.global_step == 0


def test_checkpoints_of_other_trainers_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match="no checkpoint in"):
        make_trainer(tmp_path / "none").train(resume_from_checkpoint=True)
    make_trainer(tmp_path, cls=Trainer, args={"max_steps": 4}).train()
    with pytest.raises(MissingFileError, match=r"no gates\.pt"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("setting", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_training_is_refused(setting):
    trainer = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False, args=SimpleNamespace(n_gpu=1))
    check_strategy(trainer)
    with pytest.raises(InputError, match="FSDP and DeepSpeed shard them"):
        check_strategy(SimpleNamespace(**{**vars(trainer), setting: True}))


def test_copies_for_several_gpus_in_one_process_are_refused():
    trainer = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False, args=SimpleNamespace(n_gpu=2))
    with pytest.raises(InputError, match="torchrun"):
        check_strategy(trainer)


@pytest.mark.parametrize("place", ["runs/checkpoints", "runs"])
def test_the_compact_folder_is_not_that_of_the_checkpoints(tmp_path, place):
    trainer = make_trainer(tmp_path / "runs" / "checkpoints")
    with pytest.raises(InputError, match=r"is or holds args.output_dir"):
        trainer.train_and_compact(tmp_path / place, overwrite=True)
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("uniform", [False, True])
def test_a_stock_folder_that_cannot_be_is_refused_before_training(tmp_path, uniform):
    trainer = make_trainer(tmp_path / "checkpoints", objective=gating.ExactBudget(num_heads=6, uniform=uniform))
    with pytest.raises(StockError, match="cannot be saved as a stock model"):
        trainer.train_and_compact(tmp_path / "compact", stock=True)
    assert trainer.state.global_step == 0
    assert trainer.gates.num_open() == 12
