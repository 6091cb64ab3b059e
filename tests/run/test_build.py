"""Objects are built once from settings that nothing changes; constructors' refusals name their setting."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError
from pytorch_lightning.callbacks import Callback, EarlyStopping

import train
from gating.errors import InputError
from gating.run.folder.contents import Phase
from gating.run.objects import build_objects, build_phases
from gating.run.settings.build import build, call_source, partial_of
from gating.run.settings.read import read_settings
from gating.training.checkpoints import RunCheckpoint
from tests.support.tiny_run import compose_settings

CALLBACKS = "pytorch_lightning.callbacks"


class Faulty(Callback):
    def __init__(self) -> None:
        raise ZeroDivisionError


def fail(path: str) -> None:
    raise ValueError(f"{path} is not a table")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"_target_": f"{CALLBACKS}.ModelCheckpoint", "save_top_k": -5},
            "^callbacks.mine cannot be used: .*save_top_k",
        ),
        (
            {"_target_": f"{CALLBACKS}.EarlyStopping", "monitor": "x", "mode": "up"},
            "^callbacks.mine cannot be used: .*up",
        ),
        ({"_target_": f"{CALLBACKS}.EarlyStopping"}, "^callbacks.mine cannot be used: .*monitor"),
        ({"_target_": f"{CALLBACKS}.NoSuchThing"}, "^callbacks.mine cannot be used: .*NoSuchThing"),
        ({"_target_": "gating.Distillation", "weight": 2}, "^weight=2 is not a share"),
    ],
)
def test_a_refusal_of_a_constructor_names_the_setting(values, message):
    with pytest.raises(InputError, match=message):
        build("callbacks.mine", values)


def test_faults_of_a_constructor_and_of_a_users_function_stay_faults():
    with pytest.raises(ZeroDivisionError):
        build("callbacks.mine", {"_target_": f"{__name__}.Faulty"})
    with pytest.raises(ValueError, match=r"^a\.csv is not a table$") as caught:
        call_source("data", {"_target_": f"{__name__}.fail", "path": "a.csv"})
    assert not isinstance(caught.value, InputError)


def test_a_users_function_is_called_with_arguments_that_it_has():
    with pytest.raises(InputError, match=r"^data cannot be used: .*missing a required argument: 'path'"):
        call_source("data", {"_target_": f"{__name__}.fail"})


def test_a_partial_object_takes_the_remaining_arguments():
    make = partial_of("callbacks.mine", {"_target_": f"{CALLBACKS}.EarlyStopping", "patience": 7})
    assert make(monitor="val/loss").patience == 7


@pytest.fixture
def cfg(tmp_path):
    return compose_settings(["objective.num_heads=4", f"output_dir={tmp_path}/out"])


def test_reading_leaves_the_configuration_as_it_was(cfg):
    before = OmegaConf.to_yaml(cfg)
    read_settings(cfg, groups=train.GROUPS)
    assert OmegaConf.to_yaml(cfg) == before


def test_settings_do_not_change(cfg, tmp_path):
    settings = read_settings(cfg, groups=train.GROUPS)
    with pytest.raises(FrozenInstanceError):
        settings.seed = 5  # type: ignore[misc]
    with pytest.raises(ReadonlyConfigError):
        settings._composed.seed = 5
    settings.values["objective"]["num_heads"] = 5
    assert settings.values["objective"]["num_heads"] == 4
    assert settings.with_budget({"num_heads": 5}).values["objective"]["num_heads"] == 5
    moved = settings.in_folder(tmp_path / "moved")
    assert moved.paths.checkpoints == tmp_path / "moved" / "checkpoints"
    assert settings.paths.folder == tmp_path / "out"
    assert "num_heads: 4" in moved.to_yaml()


def test_the_time_of_day_is_read_once():
    settings = read_settings(compose_settings([]), groups=train.GROUPS)
    assert not settings.has_own_folder
    folders = {settings.paths.folder, settings.with_budget({"num_heads": 3}).paths.folder}
    assert folders | {Path(settings.of_phase(Phase.SEARCH)["output_dir"])} == folders
    assert len(folders) == 1


def test_each_phase_has_objects_of_its_own(cfg, tmp_path):
    settings = read_settings(cfg, groups=train.GROUPS)
    phases = build_phases(settings)
    assert list(phases) == ["teacher", "dense", "search", "recovery"]
    folders = {
        callback._folder for objects in phases.values() for callback in objects.callbacks if _is_checkpoint(callback)
    }
    assert folders == {tmp_path / "out" / "checkpoints" / phase for phase in phases}
    assert build_objects(settings).objective is not None


def test_a_callback_of_the_command_is_built_for_each_phase(tmp_path):
    mine = f"+callbacks.mine={{_target_: {CALLBACKS}.EarlyStopping, monitor: val/loss}}"
    phases = build_phases(read_settings(compose_settings([mine, f"output_dir={tmp_path}"]), groups=train.GROUPS))
    found = [
        callback for objects in phases.values() for callback in objects.callbacks if isinstance(callback, EarlyStopping)
    ]
    assert len({id(callback) for callback in found}) == 4


def _is_checkpoint(callback: Callback) -> bool:
    return isinstance(callback, RunCheckpoint)
