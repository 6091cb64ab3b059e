"""Folders that change while a run loads its data: they are checked again when the run has the lock."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gating.run import prepare
from tests.storage.test_results import put, snapshot
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in
from tests.support.tiny_run import ROOT, run_command
from tests.support.warm_python import warm_python

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs, "trainer.max_steps=4", "trainer.val_check_interval=2"]


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_in(folder, inputs)
    return folder


@pytest.fixture(scope="module")
def half(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "run"
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs)
    return folder


@pytest.fixture
def while_loading(monkeypatch):
    """Let something happen between the first check of a run's folder and its lock."""

    def patch(action):
        load = prepare.load_examples

        def slow(*args, **kwargs):
            action()
            return load(*args, **kwargs)

        monkeypatch.setattr(prepare, "load_examples", slow)

    return patch


def replace(folder: Path, by: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(by, folder)


WRITTEN = "Another process has written a run to"
# What is in the folder before, what is there at the end of loading, the settings of the run, and its error.
CASES = {
    "a new run": (None, "whole", "", WRITTEN),
    "a new run, and one that is not finished": (None, "half", "", WRITTEN),
    "overwrite, where nothing was": (None, "whole", "overwrite=true", WRITTEN),
    "overwrite of another run": ("whole", "whole", "overwrite=true", WRITTEN),
    "overwrite of a run that another process finishes": ("half", "finished", "overwrite=true", WRITTEN),
    "resume=auto, where nothing was": (None, "whole", "resume=auto", WRITTEN),
    "resume=auto of another run": ("half", "half", "resume=auto", WRITTEN),
    "resume=auto of a run that another process finishes": ("half", "finished", "resume=auto", "has finished the run"),
    "files of a user": (None, "notes", "", "is not empty"),
    "files of a user in the place of results": (None, "csv/metrics.csv", "overwrite=true", "was not written by a run"),
}


@pytest.mark.parametrize("way", ["{place}/run", "{place}/link/run", "{place}/sub/../run"])
@pytest.mark.parametrize("case", CASES)
def test_what_came_while_a_run_loaded_is_not_replaced(case, way, inputs, whole, half, tmp_path, while_loading, capsys):
    before, then, settings, error = CASES[case]
    if way != "{place}/run" and case not in ("a new run", "overwrite of another run"):
        pytest.skip("The way is of no matter.")
    runs, folder = {"whole": whole, "half": half}, tmp_path / "run"
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "sub").mkdir()
    if before:
        replace(folder, runs[before])

    def happen() -> None:
        if then in runs:
            replace(folder, runs[then])
        elif then == "finished":
            shutil.copy(whole / "metrics.json", folder)
        else:
            put(folder, then)
        seen.update(snapshot(folder))

    seen: dict[str, object] = {}
    while_loading(happen)
    with at_batch(1, interrupt):
        assert end_of(Path(way.format(place=tmp_path)), inputs, *settings.split()) == 1
    assert error in capsys.readouterr().err
    found = snapshot(folder)
    assert {name: found[name] for name in seen} == seen
    assert {Path(name).name for name in found.keys() - seen.keys()} <= {".lock"}


def test_checkpoints_elsewhere_that_came_meanwhile_are_another_runs(inputs, tmp_path, while_loading, capsys):
    while_loading(lambda: put(tmp_path, "disk/search/step-4.ckpt"))
    assert end_of(tmp_path / "run", inputs, f"paths.checkpoints={tmp_path}/disk") == 1
    assert "holds a checkpoint of another run" in capsys.readouterr().err
    assert (tmp_path / "disk" / "search" / "step-4.ckpt").read_text() == "precious"
    assert not (tmp_path / "run" / "config.yaml").exists()


HOLD = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"


@pytest.mark.parametrize("place", ["run", "disk"])
def test_a_folder_that_another_process_has_is_refused(place, inputs, tmp_path, capsys):
    (tmp_path / place).mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / place / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with at_batch(1, interrupt):
            assert end_of(tmp_path / "run", inputs, f"paths.checkpoints={tmp_path}/disk", "overwrite=true") == 1
        other.kill()
    said = {"run": "is being trained by another process", "disk": "disk is in use by another process"}
    assert said[place] in capsys.readouterr().err
    # The locks of a refused run and of a killed process are free.
    with at_batch(1, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs, f"paths.checkpoints={tmp_path}/disk")


SLOW = """
import time
from pathlib import Path
from gating.data.sources import load_files

def load(begun: str, gate: str, **files):
    Path(begun).touch()
    while not Path(gate).exists():
        time.sleep(0.05)
    return load_files(**files)
"""


@pytest.mark.parametrize("settings", [[], ["overwrite=true"]])
def test_a_finished_run_survives_another_that_was_started_before_it(settings, inputs, tmp_path, monkeypatch):
    (tmp_path / "slow_table.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    source = ["data._target_=slow_table.load", f"+data.begun={tmp_path}/begun", f"+data.gate={tmp_path}/gate"]
    command = [*inputs, "logger=csv", "output_dir=run", *settings]
    first = subprocess.Popen(
        [*warm_python(), str(ROOT / "train.py"), *command, *source],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with first:
        while not (tmp_path / "begun").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        second = run_command(command, cwd=tmp_path)
        assert second.returncode == 0, second.stderr
        before = snapshot(tmp_path / "run")
        (tmp_path / "gate").touch()
        _, error = first.communicate(timeout=200)
    assert first.returncode == 1
    assert error.splitlines()[-1].startswith("error: Another process has written a run to run since this one was")
    assert snapshot(tmp_path / "run") == before
