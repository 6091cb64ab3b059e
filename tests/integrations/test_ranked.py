"""Trainers that fine-tune densely, rank the units, and recover from their own dense state."""

from copy import deepcopy

import pytest
import torch
from transformers import Trainer, TrainingArguments

import gating
from gating.errors import InputError
from gating.integrations import GatedTrainer
from gating.structure.layers import count_units
from tests.integrations.conftest import ARGUMENTS, examples, make_classifier, make_trainer, weights_of

pytestmark = pytest.mark.filterwarnings("ignore:.*positions are few for layers")
BOTH = {"objective": None, "recovery": None, "keep": 0.5, "gate_options": {"units": ["heads", "neurons"]}}


def test_heads_and_neurons_are_ranked_after_two_thirds_of_the_steps(tmp_path):
    trainer = make_trainer(tmp_path / "checkpoints", **BOTH)
    trainer.train()
    assert trainer.state.global_step == 11
    dense = deepcopy(trainer.gates)
    assert bool((dense.values() == 1).all())
    trainer.finalize()
    trainer.train()
    assert trainer.state.global_step == 5
    model = trainer.compact()
    assert count_units(model, "neurons") < 192
    assert trainer.teacher.distillation.hidden_weight == 1


def test_the_dense_phase_is_that_of_a_plain_trainer_with_as_many_steps(tmp_path, assert_same):
    trainer = make_trainer(tmp_path / "gated", **BOTH, distillation=None)
    trainer.train()
    plain = make_trainer(tmp_path / "plain", cls=Trainer, args={"max_steps": 11})
    plain.train()
    found = {name: tensor for name, tensor in weights_of(trainer).items() if "gates" not in name}
    assert_same(found, weights_of(plain))


@pytest.mark.runs
@pytest.mark.parametrize("after", ["dense", "removal", "recovery"])
def test_a_ranked_training_resumes_to_the_bit(after, tmp_path, assert_same):
    whole = make_trainer(tmp_path / "whole", **BOTH)
    whole.train_and_compact(tmp_path / "compact")
    first = make_trainer(tmp_path / "run", **BOTH, args={"save_steps": 2})
    first.train()
    if after != "dense":
        first.finalize()
    if after == "recovery":
        first.train()
    again = make_trainer(tmp_path / "run", **BOTH, args={"save_steps": 2})
    again.train_and_compact(tmp_path / "resumed", resume_from_checkpoint=True)
    assert_same(weights_of(whole), weights_of(again))


def test_a_model_is_ranked_as_it_is(tmp_path):
    trainer = make_trainer(tmp_path, **BOTH | {"recovery": 1.0})
    folder = trainer.train_and_compact(tmp_path / "compact")
    assert trainer.state.global_step == 16
    assert count_units(gating.load_compact(folder), "neurons") < 192


REFUSED = {
    "a second search": ({"fine_tuning": 0.5, "recovery": 0.25}, "leave steps for a search"),
    "an objective that learns gates": (
        {"fine_tuning": 0.5, "recovery": 0.5, "objective": gating.TopK(num_heads=5), "keep": None},
        "ranks units",
    ),
    "too many steps": ({"fine_tuning": 0.8, "recovery": 0.5}, "more than all steps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_plan_that_cannot_be_is_refused_and_the_model_is_as_before(case, tmp_path):
    options, words = REFUSED[case]
    model = make_classifier()
    with pytest.raises(InputError, match=words):
        make_trainer(tmp_path, model=model, **BOTH | options)
    assert not hasattr(model, "head_gates")
