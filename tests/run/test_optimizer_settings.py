"""Optimizers and schedules as the command line names them."""

import pytest
import torch

from gating.errors import InputError
from gating.run.build import build_phase
from gating.run.settings import read_settings
from gating.training.optimizers import AdamW, AnyOptimizer
from tests.support.tiny_run import checked_settings, compose_settings


def optimizer_of(*overrides: str) -> AdamW | AnyOptimizer:
    return build_phase(read_settings(compose_settings(list(overrides)))).optimizer


def test_the_class_alone_may_be_replaced():
    """Settings of the option that it replaces are left out where the class does not take them."""
    made = optimizer_of("optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1", "+optimizer.momentum=0.9")
    assert made == AnyOptimizer(torch.optim.SGD, {"momentum": 0.9}, lr=0.1)
    assert optimizer_of("optimizer=sgd").lr == 0.01
    assert isinstance(optimizer_of("optimizer=adafactor"), AnyOptimizer)
    assert optimizer_of("optimizer.betas=[0.8,0.9]") == AdamW(betas=[0.8, 0.9])


REFUSED = {
    "+optimizer.momentun=0.9": "There is no setting optimizer.momentun. Did you mean optimizer.momentum?",
    "optimizer.betas=[0.5,0.9]": "There is no setting optimizer.betas. There are dampening",
    "+optimizer.momentum=-1": "optimizer cannot be used: Invalid momentum value: -1.",
    "optimizer.lr=-1": "optimizer cannot be used: Invalid learning rate",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_settings_that_a_class_does_not_take_are_refused(setting):
    with pytest.raises(InputError) as refused:
        optimizer_of("optimizer._target_=torch.optim.SGD", setting)
    assert REFUSED[setting] in str(refused.value)


def test_arguments_of_schedules_are_added():
    settings = ["scheduler.shape=cosine_with_min_lr", "+scheduler.arguments.min_lr_rate=0.1"]
    values = checked_settings(["scheduler=cosine", *settings])
    assert values["scheduler"]["arguments"] == {"min_lr_rate": 0.1}
