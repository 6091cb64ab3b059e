"""Errors of the core name arguments in Python, and settings in a command."""

from collections.abc import Callable

import pytest
from transformers import BertConfig, BertForSequenceClassification

import gating
from gating.errors import explain
from gating.run.build import naming_settings


def bert(**settings: object) -> BertForSequenceClassification:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    return BertForSequenceClassification(BertConfig(vocab_size=20, **sizes, **settings))


def ask_for_a_cost_that_takes_timings() -> None:
    gates = gating.inject_gates(bert(), units=["heads", "neurons"])
    gating.ExactBudget(keep=0.5, cost="latency").attach(gates)


def learn_from_a_teacher_of_another_task() -> None:
    gating.Teacher(bert()).check(bert(num_labels=3), {})


CASES: dict[Callable[[], None], tuple[str, str]] = {
    ask_for_a_cost_that_takes_timings: ("gating.budget_for_speedup", "objective.cost=macs"),
    learn_from_a_teacher_of_another_task: ("on this data first.", "distillation.teacher=null."),
}


@pytest.mark.parametrize("action", CASES)
def test_each_user_gets_the_remedy_in_their_own_words(action):
    in_python, in_command = CASES[action]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        action()
    assert in_python in str(caught.value)
    assert in_command not in str(caught.value)
    assert in_command in explain(caught.value)
    assert in_python not in explain(caught.value)


@pytest.mark.parametrize(
    ("in_python", "in_command"),
    [
        ("price=9 is too much.", "objective.price=9 is too much."),
        ("got start=2 and end=1.", "got objective.schedule.start=2 and objective.schedule.end=1."),
        ("num_heads.cross=7 is too many.", "objective.num_heads.cross=7 is too many."),
        ("objective.price=9, seed=1: pass verify=False.", "objective.price=9, seed=1: pass verify=False."),
        ("temperature=0.5 may be of either.", "temperature=0.5 may be of either."),
        ("data.train=/a/price=9/b.csv has the column price=8.", "data.train=/a/price=9/b.csv has the column price=8."),
    ],
)
def test_parameters_have_the_names_of_settings_in_a_command(in_python, in_command):
    settings = {
        "seed": 1,
        "objective": {"price": 9, "num_heads": {"cross": 7}, "schedule": {"start": 2, "end": 1}},
        "gates": {"temperature": 0.5},
        "distillation": {"temperature": 0.5},
    }
    with pytest.raises(ValueError) as caught, naming_settings(settings):  # noqa: PT011
        raise ValueError(in_python)
    assert (str(caught.value), explain(caught.value)) == (in_python, in_command)
