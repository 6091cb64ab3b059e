"""Refusals of a trainer with gates, before anything is trained or changed."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer

import gating
from gating.errors import InputError, OperationError
from gating.integrations.phases import check_trainer
from tests.integrations.conftest import make_classifier, make_trainer


def test_what_cannot_work_is_said_before_anything_changes(tmp_path):
    with pytest.raises(InputError, match=r"recovery=1.5 is not a share"):
        make_trainer(tmp_path, recovery=1.5)
    model = make_classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(InputError, match=r"give args\.optim"):
        make_trainer(tmp_path, model=model, optimizers=(optimizer, None))
    assert not hasattr(model, "head_gates")
    with pytest.raises(InputError, match="num_heads"):
        make_trainer(tmp_path, model=model, objective=gating.ExactBudget(num_heads=13))
    assert not hasattr(model, "head_gates")


def test_multipliers_need_an_optimizer_that_ascends(tmp_path):
    trainer = make_trainer(tmp_path, objective=gating.Lagrangian(num_heads=5), args={"optim": "adafactor"})
    with pytest.raises(InputError, match="maximize"):
        trainer.train()
    trainer.args.optim = "adamw_torch"
    trainer.train()
    assert "gates" in [group.get("name") for group in trainer.optimizer.param_groups]


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
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        make_trainer(tmp_path / "none").train(resume_from_checkpoint=True)
    make_trainer(tmp_path, cls=Trainer, args={"max_steps": 4}).train()
    with pytest.raises(FileNotFoundError, match=r"gates\.pt"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"is_fsdp_enabled": True}, "FSDP and DeepSpeed"),
        ({"is_deepspeed_enabled": True}, "FSDP and DeepSpeed"),
        ({"args": SimpleNamespace(n_gpu=2)}, "torchrun"),
        ({"ref_model": None, "beta": 0.1}, r"give ref_model=\.\.\."),
    ],
)
def test_models_that_are_not_whole_and_adapters_without_a_reference_are_refused(setting, problem):
    usual = {"is_fsdp_enabled": False, "is_deepspeed_enabled": False, "lr_scheduler": None, "optimizer": None}
    trainer = SimpleNamespace(**{**usual, "args": SimpleNamespace(n_gpu=1), **setting})
    with pytest.raises(InputError, match=problem):
        check_trainer(trainer, has_adapters=True)


def test_one_budget_is_needed(tmp_path):
    with pytest.raises(InputError, match="Give one of"):
        make_trainer(tmp_path, keep=0.5)
