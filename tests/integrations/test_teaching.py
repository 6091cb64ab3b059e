"""A teacher in a trainer with gates: its loss, resumed trainings, and what cannot learn from one."""

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer
from trl import DPOTrainer, SFTConfig, SFTTrainer

import gating
from gating.errors import InputError
from gating.integrations import GatedTrainerMixin
from gating.integrations.teaching import teacher_for
from gating.structure.layers import count_units
from tests.integrations.conftest import CHECKPOINTING, examples, make_classifier, make_trainer, weights_of
from tests.integrations.test_other_trainers import (
    ROWS,
    SHARED,
    GatedSFTTrainer,
    llama,
    with_lora,
    words,
)
from tests.integrations.test_resume import StopAt, StopInRecovery, compact

__all__ = ["llama", "words"]

HIDDEN = gating.Distillation(weight=0.5, hidden_weight=1.0)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def teacher(seed=5, **config):
    return make_classifier(seed, config=config)


def losses_of(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_the_loss_of_a_step_is_that_of_a_loop(tmp_path):
    model = make_classifier(config=NO_DROPOUT)
    own, batch = (
        copy.deepcopy(model),
        {name: [row[name] for row in examples(64, seed=1)] for name in ("input_ids", "labels")},
    )
    trainer = make_trainer(
        tmp_path,
        model=model,
        distillation=HIDDEN,
        teacher=teacher(),
        objective=gating.NoObjective(),
        args={"per_device_train_batch_size": 64, "max_steps": 1, "logging_steps": 1},
    )
    assert trainer.gates.num_heads == 12
    one = gating.Teacher(teacher(), distillation=HIDDEN)
    rows = {name: torch.stack(values) for name, values in batch.items()}
    # The gates of the trainer are sampled; without them the loop is the same.
    trainer.gates.log_alpha.data.fill_(20.0)
    trainer.train()
    outputs = own(**rows, **one.options)
    assert losses_of(trainer)[0] == pytest.approx(one.loss(outputs.loss, outputs, rows).item(), rel=1e-5)


@pytest.mark.runs
def test_the_teacher_is_in_no_checkpoint_and_is_not_trained(tmp_path):
    dense = teacher()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    trainer = make_trainer(tmp_path, distillation=HIDDEN, teacher=dense)
    names = weights_of(trainer).keys()
    trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert not dense.training
    assert all(parameter.grad is None for parameter in dense.parameters())
    assert weights_of(trainer).keys() == names
    # Evaluation is that of the task.
    loss = trainer.evaluate()["eval_loss"]
    trainer.teacher = None
    assert trainer.evaluate()["eval_loss"] == loss


@pytest.mark.runs
@pytest.mark.parametrize(
    ("stop", "args"),
    [
        (StopInRecovery(3), {"bf16": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
        (StopAt(7), {CHECKPOINTING: True}),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, assert_same, stop, args):
    teacher().save_pretrained(tmp_path / "dense")

    def options():
        return {"distillation": HIDDEN, "teacher": tmp_path / "dense", "args": {"save_steps": 2, **args}}

    whole = compact(tmp_path / "whole", **options())
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop=stop, **options())
    resumed = compact(tmp_path / "parts", resume=True, **options())
    assert_same(weights_of(whole), weights_of(resumed))
    assert losses_of(whole) == losses_of(resumed)


def decoder(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=45, **sizes))


def texts():
    """Return examples of equal length, with unequal numbers of labels; one has none."""
    rows = [row["input_ids"] for row in examples(8, seed=1)]
    return [
        {"input_ids": tokens, "labels": tokens.masked_fill(torch.arange(8) < number % 5 * 2, -100)}
        for number, tokens in enumerate(rows)
    ]


@pytest.mark.runs
# Losses of a classifier are averaged over the batches of a step; those of a decoder are divided by its tokens.
@pytest.mark.parametrize(
    ("make", "num_parts"), [(decoder, 8), (decoder, 3), (lambda seed: make_classifier(seed, config=NO_DROPOUT), 8)]
)
def test_accumulated_batches_are_one_batch(tmp_path, make, num_parts):
    def step(num_batches):
        model = make(0)
        trainer = make_trainer(
            tmp_path,
            model=model,
            train_dataset=texts() if make is decoder else examples(8, seed=1),
            distillation=HIDDEN,
            teacher=make(5),
            args={
                "gradient_accumulation_steps": num_batches,
                "per_device_train_batch_size": -(-8 // num_batches),
                "max_steps": 1,
                "logging_steps": 1,
                "logging_nan_inf_filter": False,
                "max_grad_norm": 0.0,
                "optim": "sgd",
                "learning_rate": 1.0,
                "save_strategy": "no",
            },
        )
        trainer.gates.log_alpha.data.fill_(20.0)
        trainer.train()
        return losses_of(trainer)[0], weights_of(trainer)

    (loss, weights), (others, other) = step(1), step(num_parts)
    assert others == pytest.approx(loss, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.runs
def test_adapters_learn_from_a_larger_teacher(tmp_path):
    larger = teacher(hidden_size=48, num_hidden_layers=4)
    trainer = make_trainer(tmp_path / "checkpoints", model=with_lora(), teacher=larger)
    assert trainer.teacher.distillation == gating.Distillation()
    assert count_units(gating.load_compact(trainer.train_and_compact(tmp_path / "compact")), "heads") == 5


def test_what_cannot_learn_is_said_before_anything_changes(tmp_path):
    model = make_classifier()
    with pytest.raises(InputError, match="leave steps for a search, which a trainer"):
        make_trainer(tmp_path, model=model, distillation=HIDDEN)
    with pytest.raises(InputError, match="give a copy of the model"):
        make_trainer(tmp_path, model=model, teacher=model)
    assert not hasattr(model, "head_gates")


@pytest.mark.runs
def test_a_loss_of_ones_own_returns_its_outputs(tmp_path):
    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            loss = 2 * outputs.loss
            return (loss, outputs if self.returns else {"rewards": loss}) if return_outputs else loss

    class Gated(GatedTrainerMixin, Own):
        pass

    def make():
        objective = gating.ExactBudget(num_heads=5)
        return make_trainer(tmp_path, cls=Gated, objective=objective, teacher=teacher(), args={"max_steps": 4})

    Own.returns = True
    make().train()
    Own.returns = False
    with pytest.raises(InputError, match="compute_loss of Gated returns no logits"):
        make().train()


@pytest.mark.runs
def test_a_loss_function_gets_the_number_of_items_of_the_batch(tmp_path):
    def loss(outputs, labels, num_items_in_batch):
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    def step(**options):
        trainer = make_trainer(
            tmp_path,
            model=make_classifier(config=NO_DROPOUT),
            teacher=teacher(),
            args={"max_steps": 1, "logging_steps": 1, "gradient_accumulation_steps": 4},
            **options,
        )
        trainer.gates.log_alpha.data.fill_(20.0)
        trainer.train()
        return losses_of(trainer)

    assert step(compute_loss_func=loss) == pytest.approx(step(), rel=1e-5)


def supervised(cls, llama, words, folder, **options):
    return cls(
        model=llama,
        args=SFTConfig(output_dir=str(folder), max_length=16, **SHARED),
        train_dataset=Dataset.from_dict({name: ROWS[name] for name in ("prompt", "completion")}),
        processing_class=words,
        objective=gating.ExactBudget(num_heads=4),
        **options,
    )


@pytest.mark.runs
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_supervised_fine_tuning_of_trl_learns_from_a_teacher(tmp_path, llama, words):
    options = {"distillation": HIDDEN, "teacher": copy.deepcopy(llama)}
    # The distance to an equal teacher is only that of the gates; the task has half of its weight.
    alone = supervised(GatedSFTTrainer, copy.deepcopy(llama), words, tmp_path / "alone")
    trainer = supervised(GatedSFTTrainer, llama, words, tmp_path / "sft", **options)
    alone.train()
    folder = trainer.train_and_compact(tmp_path / "compact")
    assert losses_of(trainer)[0] == pytest.approx(losses_of(alone)[0] / 2, rel=0.1)
    assert count_units(gating.load_compact(folder), "heads") == 4


@pytest.mark.runs
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_loss_of_ones_own_of_supervised_fine_tuning_is_called(tmp_path, llama, words):
    class Doubled(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = Trainer.compute_loss(self, model, inputs, True, num_items_in_batch)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    class GatedDoubled(GatedTrainerMixin, Doubled):
        pass

    def first_loss(cls, name):
        options = {"distillation": gating.Distillation(weight=0.0), "teacher": copy.deepcopy(llama)}
        trainer = supervised(cls, copy.deepcopy(llama), words, tmp_path / name, **options)
        trainer.gates.log_alpha.data.fill_(20.0)
        trainer.train()
        return losses_of(trainer)[0]

    assert first_loss(GatedDoubled, "own") == pytest.approx(2 * first_loss(GatedSFTTrainer, "sft"), rel=1e-3)


# One with a teacher of its own, as GKDTrainer.
OWN = type("OwnTeacher", (SFTTrainer,), {"__module__": "trl.experimental", "compute_loss": None})


@pytest.mark.parametrize(("base", "loss_type"), [(DPOTrainer, "sigmoid"), (OWN, "nll"), (SFTTrainer, "dft")])
def test_trainers_with_another_loss_have_no_teacher(base, loss_type):
    cls = type("Gated", (GatedTrainerMixin, base), {})
    trainer = cls.__new__(cls)
    trainer.model, trainer.args = None, SimpleNamespace(loss_type=loss_type)
    with pytest.raises(InputError, match="Gated has another loss than that of labels"):
        teacher_for(trainer, make_classifier(), None, is_frozen=False)
    with pytest.raises(InputError, match="Gated has another loss than that of labels"):
        teacher_for(trainer, None, gating.Distillation(), is_frozen=True)
