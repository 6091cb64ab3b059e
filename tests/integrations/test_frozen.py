"""Gates on frozen weights in transformers' Trainer."""

from copy import deepcopy

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import gating
from gating.errors import InputError
from tests.integrations.conftest import CHECKPOINTING, make_classifier, make_trainer, weights_of
from tests.integrations.test_resume import StopAt, StopInRecovery


def deterministic():
    return gating.DeterministicBudget(num_heads=5)


@pytest.mark.parametrize("objective", [lambda: gating.ExactBudget(num_heads=5), deterministic])
def test_gates_alone_are_trained(tmp_path, objective):
    trainer = make_trainer(tmp_path, objective=objective(), freeze_weights=True, recovery=0)
    before, places = weights_of(trainer), trainer.gates.log_alpha.clone()
    trainer.train()
    for name, tensor in weights_of(trainer).items():
        assert torch.equal(tensor, before[name]) or "head_gates" in name or "objective" in name, name
    assert not torch.equal(trainer.gates.log_alpha, places)
    assert [one["name"] for one in trainer.optimizer.param_groups if one["params"]] == ["gates"]
    with pytest.raises((TypeError, ValueError)):
        trainer.finalize(probe={"unknown": torch.ones(1)})
    trained = [name for name, one in trainer.model.named_parameters() if one.requires_grad]
    assert all(name.startswith("head_gates.") for name in trained)
    assert trainer.finalize().num_heads == 5
    assert all(one.requires_grad for one in trainer.model.parameters())


@pytest.mark.runs
def test_a_recovery_trains_the_weights(tmp_path):
    trainer = make_trainer(tmp_path, freeze_weights=True)
    trainer.train()
    trainer.finalize()
    before = weights_of(trainer)
    trainer.train()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights_of(trainer).items())


@pytest.mark.runs
@pytest.mark.parametrize("stop", [StopAt(6), StopInRecovery(2)])
@pytest.mark.parametrize("args", [{}, {CHECKPOINTING: True}])
def test_the_model_is_the_teacher_of_its_gates(tmp_path, stop, args, assert_same):
    def make(folder, **options):
        lesson = gating.Distillation(weight=0.5, hidden_weight=1.0)
        options = {"objective": deterministic(), "distillation": lesson, "args": args, **options}
        return make_trainer(tmp_path / folder, freeze_weights=True, **options)

    whole = make("whole")
    assert isinstance(whole.teacher.model, gating.OpenTeacher)
    whole.train_and_compact(tmp_path / "compact")
    assert whole.teacher is None
    stopped = make("half", callbacks=[stop])
    with pytest.raises(KeyboardInterrupt):
        stopped.train_and_compact(tmp_path / "other")
    resumed = make("half")
    resumed.train_and_compact(tmp_path / "other", resume_from_checkpoint=True)
    assert resumed.teacher is None
    assert_same(weights_of(whole), weights_of(resumed))


@pytest.mark.runs
def test_the_loss_of_a_step_is_that_of_a_loop_with_the_model_as_teacher(tmp_path):
    def loss(**options):
        args = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no"}
        trainer = make_trainer(tmp_path, freeze_weights=True, recovery=0, args=args, **options)
        trainer.gates.log_alpha.data.fill_(1.0)
        trainer.train()
        return next(row["loss"] for row in trainer.state.log_history if "loss" in row)

    lesson = gating.Distillation(weight=0.5)
    own, given = loss(distillation=lesson), loss(distillation=lesson, teacher=make_classifier())
    assert own == pytest.approx(given, rel=1e-6)
    assert own != pytest.approx(loss(), rel=1e-6)


LLAMA = LlamaConfig(
    vocab_size=45, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, pad_token_id=0
)


def make_half_frozen(folder, **options):
    """Return a trainer of a model whose first two layers its user has frozen."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(deepcopy(LLAMA))
    model.model.layers[:2].requires_grad_(False)
    gates = {"units": ["heads", "neurons"], "group_size": 16}
    return make_trainer(folder, model=model, freeze_weights=True, gate_options=gates, args={"save_steps": 1}, **options)


def is_trained(model):
    return [{one.requires_grad for one in layer.parameters()} for layer in model.model.layers]


def without_first_layer(gates):
    kept = torch.ones(len(gates.log_alpha), dtype=torch.bool)
    kept[[name.startswith("layers.0.") for name in gates.block_names for _ in range(2)]] = False
    return kept


@pytest.mark.runs
def test_weights_that_a_user_froze_stay_so_where_layers_leave(tmp_path):
    objective = {"objective": gating.DeterministicBudget(num_heads=7)}
    trainer = make_half_frozen(tmp_path, callbacks=[StopInRecovery(2)], **objective)
    trainer.train()
    assert is_trained(trainer.model) == 4 * [{False}]
    assert trainer.finalize(kept=without_first_layer(trainer.gates)).kept_layers == {"layers": (1, 2, 3)}
    assert is_trained(trainer.model) == [{False}, {True}, {True}]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = make_half_frozen(tmp_path, **objective)
    resumed.train(resume_from_checkpoint=True)
    assert is_trained(resumed.model) == [{False}, {True}, {True}]


def test_a_model_whose_budget_is_refused_has_its_weights_to_train(tmp_path):
    model = make_classifier()
    with pytest.raises(InputError, match="num_heads"):
        make_trainer(tmp_path, model=model, freeze_weights=True, objective=gating.ExactBudget(num_heads=13))
    assert all(one.requires_grad for one in model.parameters())


@pytest.mark.runs
@pytest.mark.parametrize("distillation", [None, gating.Distillation()])
def test_adapters_are_trained_in_search_and_recovery(tmp_path, distillation):
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(make_classifier(), lora)
    trainer = make_trainer(tmp_path, model=model, freeze_weights=True, distillation=distillation)
    trainer.train_and_compact(tmp_path / "compact")
    assert trainer.state.global_step == 4
