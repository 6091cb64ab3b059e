"""Settings removed with ~ are optional, or an error of one sentence names them."""

from collections.abc import Iterator
from copy import deepcopy

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

import train
from gating.distributed.launch import check_devices
from gating.errors import explain, is_input_error
from gating.run.objects import build_objects, build_phases
from gating.run.settings.read import read_settings
from gating.run.settings.settings import Settings
from tests.support.tiny_run import compose_settings

CHOICES = [
    ["objective.num_heads=4"],
    ["objective=random", "adapters=lora", "distillation=logits"],
    ["objective=lagrangian", "callbacks=none"],
    ["objective=none"],
]


def names_in(settings: DictConfig, prefix: str = "") -> Iterator[str]:
    for name, value in OmegaConf.to_container(settings).items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from names_in(settings[name], f"{prefix}{name}.")


def read_all(settings: DictConfig) -> Settings:
    read = read_settings(settings, groups=train.GROUPS)
    check_devices(read.values["trainer"])
    build_objects(read)
    build_phases(read)
    return read


def without(settings: DictConfig, name: str) -> DictConfig:
    rest = deepcopy(settings)
    parent, _, last = name.rpartition(".")
    with open_dict(rest):
        del (OmegaConf.select(rest, parent) if parent else rest)[last]
    return rest


@pytest.mark.runs
@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_removed_settings_are_optional_or_named_in_one_sentence(choice):
    settings = compose_settings(["output_dir=x", *choice])
    told = set()
    for name in names_in(settings):
        try:
            read_all(without(settings, name))
        except Exception as error:
            refused = error
            assert is_input_error(refused), name
            assert "\n" not in explain(refused)
            told.add(name)
    assert {"task", "data", "objective", "trainer", "seed", "task._target_", "trainer.max_steps"} <= told
    assert not {"optimizer.lr", "gates.discover", "logger.mode", "scheduler.warmup", "data.batch_size"} & told


def test_the_sentence_names_the_setting_and_the_remedy():
    settings = compose_settings(["output_dir=x"])
    with pytest.raises(ValueError, match=r"^task is missing, which every run needs: leave ~task out of the command\.$"):
        read_all(without(settings, "task"))
    with pytest.raises(ValueError, match=r"^convergence is missing, which every run needs: give convergence=null\.$"):
        read_all(without(settings, "convergence"))
    with pytest.raises(ValueError, match=r"^objective.schedule._target_ is missing"):
        read_all(without(settings, "objective.schedule._target_"))
