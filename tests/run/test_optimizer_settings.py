"""Optimizers and schedules as the command line names them."""

import torch

from gating.run.build import build_phase
from gating.run.settings import read_settings
from gating.training.optimizers import AdamW, AnyOptimizer
from tests.support.tiny_run import checked_settings, compose_settings


def optimizer_of(*overrides: str) -> AdamW | AnyOptimizer:
    return build_phase(read_settings(compose_settings(list(overrides)))).optimizer


ANY = ("optimizer=any", "optimizer.weights._target_=torch.optim.SGD")


def test_any_class_trains_the_weights():
    made = optimizer_of(*ANY, "optimizer.lr=0.1", "+optimizer.weights.momentum=0.9")
    assert isinstance(made, AnyOptimizer)
    assert (made.weights.func, made.weights.keywords, made.lr) == (torch.optim.SGD, {"momentum": 0.9}, 0.1)
    assert optimizer_of("optimizer=sgd").lr == 0.01
    assert isinstance(optimizer_of("optimizer=adafactor"), AnyOptimizer)
    assert optimizer_of("optimizer.betas=[0.8,0.9]") == AdamW(betas=[0.8, 0.9])


def test_arguments_of_schedules_are_added():
    settings = ["scheduler.shape=cosine_with_min_lr", "+scheduler.arguments.min_lr_rate=0.1"]
    values = checked_settings(settings)
    assert values["scheduler"]["arguments"] == {"min_lr_rate": 0.1}
