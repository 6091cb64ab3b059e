"""Objects are built from settings that each checks; refusals name their setting."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping

import gating
from gating.errors import InputError
from gating.run.build import DataSettings, build, build_callbacks, build_objects, load_source
from gating.run.settings import read_settings
from gating.training.optimizers import AdamW, AnyOptimizer
from tests.support.tiny_run import compose_settings

CALLBACKS = "pytorch_lightning.callbacks"


class Faulty(Callback):
    def __init__(self) -> None:
        raise ZeroDivisionError


def fail(path: str) -> None:
    raise ValueError(f"{path} is not a table")


def objects(*given: str):
    settings = read_settings(compose_settings(["output_dir=x", "data=digits", "task=image_classification", *given]))
    return build_objects(settings), build("optimizer", settings.optimizer), build("scheduler", settings.scheduler)


def test_faults_of_a_constructor_and_of_a_users_function_stay_faults():
    with pytest.raises(ZeroDivisionError):
        build("callbacks.mine", {"_target_": f"{__name__}.Faulty"})
    source = {"_target_": f"{__name__}.fail", "path": "a.csv"}
    with pytest.raises(ValueError, match=r"^a\.csv is not a table$") as caught:
        load_source(DataSettings(source, {}, {}, None, False))
    assert not isinstance(caught.value, InputError)


def test_a_partial_object_takes_the_remaining_arguments():
    make = build("callbacks.mine", {"_target_": f"{CALLBACKS}.EarlyStopping", "patience": 7}, partial=True)
    assert make(monitor="val/loss").patience == 7


def test_each_phase_has_objects_of_its_own(tmp_path):
    mine = f"+callbacks.mine={{_target_: {CALLBACKS}.EarlyStopping, monitor: val/loss}}"
    settings = read_settings(compose_settings([mine, f"output_dir={tmp_path}"]))
    found = [one for _ in range(2) for one in build_callbacks(settings) if isinstance(one, EarlyStopping)]
    assert len({id(callback) for callback in found}) == 2


def test_a_teacher_takes_no_more_memory_than_the_model():
    made, *_ = objects("distillation=logits", "distillation.teacher=dense", "model.dtype=bfloat16")
    assert made.source.dtype == made.teacher.dtype == "bfloat16"


def test_settings_go_to_the_source_the_task_and_the_batches():
    made, optimizer, _ = objects("data.batch_size=4", "objective.num_heads=18")
    assert made.data.source == {"_target_": "gating.data.sources.load_digits", "seed": 0}
    assert made.data.batching["batch_size"] == 4
    assert isinstance(made.objective, gating.ExactBudget)
    assert optimizer.lr == 1e-4
    assert objects("objective=none", "+objective.num_heads=3")[0].objective is None


def test_any_class_trains_the_weights():
    settings = ("optimizer=any", "optimizer.weights._target_=torch.optim.SGD", "optimizer.lr=0.1")
    made = objects(*settings, "+optimizer.weights.momentum=0.9")[1]
    assert isinstance(made, AnyOptimizer)
    assert (made.weights.func, made.weights.keywords, made.lr) == (torch.optim.SGD, {"momentum": 0.9}, 0.1)
    assert objects("optimizer=sgd")[1].lr == 0.01
    assert isinstance(objects("optimizer=adafactor")[1], AnyOptimizer)
    assert objects("optimizer.betas=[0.8,0.9]")[1] == AdamW(betas=[0.8, 0.9])


def test_arguments_of_schedules_are_added():
    shape = "scheduler.shape=cosine_with_min_lr"
    assert objects(shape, "+scheduler.arguments.min_lr_rate=0.1")[2].arguments == {"min_lr_rate": 0.1}
