"""``resume=DIR`` overrides the settings of the folder with those of the command line, and runs no code from it."""

import json
import shutil
from pathlib import Path

import pytest

from gating.run.folder.stored_settings import read_settings_of
from gating.run.settings.options import names_given, read_options
from tests.run.conftest import begin
from tests.storage.test_results import snapshot
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.resumed import change, recalled, resume
from tests.support.tiers import first_of
from tests.support.tiny_run import ROOT


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs, "trainer.max_steps=4", "trainer.val_check_interval=1"]


@pytest.fixture(scope="module")
def begun(inputs, tmp_path_factory) -> Path:
    return begin(tmp_path_factory.mktemp("begun") / "run", inputs)


@pytest.mark.runs
def test_checkpoints_on_another_disk_are_remembered_after_a_move_and_can_be_named(inputs, tmp_path):
    place = f"paths.checkpoints={tmp_path}/disk"
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs, place)
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    assert recalled(moved)["paths"]["checkpoints"] == str(tmp_path / "disk")
    (tmp_path / "disk" / ".run-of-checkpoints").unlink()
    assert resume(moved) == 1
    with at_batch(1, interrupt), pytest.raises(Interrupted):
        resume(moved, place)


@pytest.mark.runs
@pytest.mark.parametrize("given", [False, True])
def test_a_copy_of_a_run_does_not_take_its_checkpoints_on_another_disk(given, inputs, tmp_path, capsys):
    place = f"paths.checkpoints={tmp_path}/disk"
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs, place)
    copy, before = shutil.copytree(tmp_path / "run", tmp_path / "copy"), snapshot(tmp_path / "disk")
    assert resume(copy, *[place] * given) == 1
    said = f"are those of the run in {tmp_path}/run, of which {copy} is a copy" if given else "may be those of another"
    assert said in capsys.readouterr().err
    assert snapshot(tmp_path / "disk") == before
    shutil.copytree(tmp_path / "disk", copy / "checkpoints")
    assert resume(copy, f"paths.checkpoints={copy}/checkpoints") == 0
    assert snapshot(tmp_path / "disk") == before


DIFFERENT = {
    "objective.num_heads=2": "has objective.num_heads=4, and this command objective.num_heads=2",
    "seed=0 recovery=0.5": "has recovery=0.25, and this command recovery=0.5",
    "~convergence": "convergence is missing",
    "convergence=null": "has convergence._target_=gating.Convergence",
    "+trainer.benchmark=true": "has trainer.benchmark=None, and this command trainer.benchmark=True",
    "data.batch_size=4": "has data.batch_size=8, and this command data.batch_size=4",
    "optimizer.lr=1e-2 data.num_workers=0": "has optimizer.lr=0.001, and this command optimizer.lr=0.01",
    "objective=random": "has objective=budget, and this command",
    "experiment=smoke": "has data.max_length=None, and this command data.max_length=32",
    "debug=fast": "has trainer.limit_test_batches=None, and this command trainer.limit_test_batches=2",
    "trainer=gpu": "trainer",
    "output_dir=elsewhere": "leave output_dir out",
}


@pytest.mark.parametrize("settings", first_of(DIFFERENT, every=6))
def test_only_settings_that_differ_from_the_folder_are_refused(settings, moved, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resume(moved, *settings.split()) == 1
    error = capsys.readouterr().err
    assert DIFFERENT[settings] in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "settings", first_of(["objective.num_heads=4 seed=0", "callbacks.checkpoint.keep=1", "logger=csv"])
)
def test_equal_and_irrelevant_settings_may_be_given_with_a_folder(settings, moved):
    assert resume(moved, *settings.split()) == 0
    assert json.loads((moved / "metrics.json").read_text())["num_heads"] == 4


def test_given_settings_override_those_of_the_folder(moved):
    stored = read_settings_of(moved)
    taken = recalled(moved, "callbacks.checkpoint.keep=1", "data.num_workers=2", "trainer.max_time=00:01:00:00")
    assert taken["callbacks"]["checkpoint"] == {
        **stored["callbacks"]["checkpoint"],
        "keep": 1,
        "dirpath": "${paths.checkpoints}/${phase}",
    }
    assert taken["data"] == {**stored["data"], "num_workers": 2}
    assert taken["trainer"] == {**stored["trainer"], "max_time": "00:01:00:00"}
    assert taken["logger"] == stored["logger"]
    assert taken["output_dir"] == str(moved)
    assert taken["paths"]["checkpoints"] == str(moved / "checkpoints")


def test_a_secret_can_be_given_again(moved):
    change(moved, model__tokenizer="***")
    with pytest.raises(ValueError, match="had a secret among its settings"):
        recalled(moved)
    assert recalled(moved, "model.tokenizer=x")["model"]["tokenizer"] == "x"


def test_names_of_settings_given_on_a_command_line():
    options = read_options(ROOT / "conf")
    lines = ["+callbacks@callbacks.more=none", "~data.train", "++a.b=c=d", "model=minilm", "experiment=wnut17"]
    assert names_given(lines, options) == [
        "callbacks.more", "data.train", "a.b", "model", "trainer.max_epochs", "task", "data"
    ]  # fmt: skip
