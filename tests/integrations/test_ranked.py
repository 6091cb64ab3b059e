"""Trainers that fine-tune densely, rank the units, and recover from their own dense state."""

from copy import deepcopy

import pytest
from transformers import Trainer, TrainingArguments

import gating
from gating.errors import InputError
from gating.integrations import GatedTrainer
from gating.structure.layers import count_units
from tests.integrations.conftest import ARGUMENTS, examples, make_classifier, make_trainer, weights_of
from tests.support.interruptions import Interrupted, interrupt, run_in

pytestmark = pytest.mark.filterwarnings("ignore:.*(positions are few for layers|it is not fine-tuned)")
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


@pytest.mark.runs
def test_a_trainer_and_a_run_choose_the_same_units(tiny_inputs, tmp_path, monkeypatch):
    """With the same data, seed and steps; a batch has all examples, whose order differs, and nothing is drawn."""
    from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding

    from gating.run import phases

    seen = {}

    def look(run):
        seen["record"] = run.state.model.config.head_gating
        seen["table"] = run.data.prepared.splits["train"]
        interrupt()

    monkeypatch.setattr(phases, "_save_removed", look)
    rows = ["data.batch_size=64", "scheduler.shape=constant_with_warmup", "scheduler.warmup=0.0", "trainer.max_steps=9"]
    dropout = ["+model.config.hidden_dropout_prob=0.0", "+model.config.attention_probs_dropout_prob=0.0"]
    units = [
        "gates.units=[heads,neurons]",
        "objective.num_heads=null",
        "objective.keep=0.5",
        "trainer.val_check_interval=1",
    ]
    given = [line for line in tiny_inputs if not line.startswith(("recovery", "objective", "trainer.val_check"))]
    with pytest.raises(Interrupted):
        run_in(tmp_path / "run", given, *rows, *dropout, *units, "distillation=own")
    place = next(line.partition("=")[2] for line in given if line.startswith("model.name="))
    model = BertForSequenceClassification.from_pretrained(
        place, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    tokenizer = AutoTokenizer.from_pretrained(place)
    arguments = {**ARGUMENTS, "max_steps": 9, "per_device_train_batch_size": 64, "weight_decay": 0.01}
    trainer = GatedTrainer(
        model=model,
        args=TrainingArguments(str(tmp_path / "out"), lr_scheduler_type="constant", seed=0, **arguments),
        train_dataset=seen["table"],
        data_collator=DataCollatorWithPadding(tokenizer),
        keep=0.5,
        gate_options={"units": ["heads", "neurons"]},
    )
    trainer.train()
    trainer.finalize()
    assert trainer.model.config.head_gating == seen["record"]


def test_a_list_of_shares_gives_a_list_of_models(tmp_path):
    from datasets import Dataset

    data = Dataset.from_list([{name: tensor.tolist() for name, tensor in row.items()} for row in examples(64, seed=1)])
    larger, smaller = gating.prune(make_classifier(), data, keep=[0.6, 0.4], train=False)
    assert count_units(larger, "neurons") > count_units(smaller, "neurons")
    with pytest.raises(InputError, match="is no list of sizes"):
        gating.prune(make_classifier(), data, keep=[0.5, 0.5], train=False)
