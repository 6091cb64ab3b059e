"""Two sweeps in one folder: the second is refused, while the first runs and not longer."""

import signal
import subprocess
import sys
import time

import pytest

from gating.run.sweep.jobs import jobs_of
from tests.run.test_folder import HOLD
from tests.support.interruptions import at_batch
from tests.support.outcome import snapshot
from tests.support.sweeps import run_sweep
from tests.support.tiny_run import ROOT, run_command
from tests.support.warm_python import warm_python

pytestmark = pytest.mark.processes

SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2", "logger=csv", "objective.num_heads=4"]
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
IN_USE = "is in use by another process. Wait for its end, or choose another output_dir."


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs[:-1], *SHORT]


@pytest.mark.parametrize("settings", [["overwrite=true"], ["resume=auto"]], ids=" ".join)
def test_a_second_sweep_is_refused_and_the_first_ends_as_if_alone(settings, inputs, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    processes = []

    def begin_another() -> None:
        before = snapshot(folder)
        command = ["-m", *inputs, *settings, "seed=0,1", f"output_dir={tmp_path}/link/sweep"]
        processes.append(run_command(command, cwd=tmp_path))
        assert snapshot(folder) == before

    folder = tmp_path / "sweep"
    with at_batch(1, begin_another):
        end = run_sweep(folder, *inputs, "seed=0,1")
    assert (processes[0].returncode, processes[0].stdout) == (1, "")
    assert processes[0].stderr == f"error: {tmp_path}/link/sweep {IN_USE}\n"
    assert end.code == 0, end.err
    assert [(job.folder, job.reason) for job in jobs_of(folder)] == [("0", None), ("1", None)]


def test_a_sweep_that_was_killed_holds_its_folder_no_longer(inputs, tmp_path, monkeypatch):
    (tmp_path / "slow_table.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.syspath_prepend(tmp_path)
    source = ["data._target_=slow_table.load", f"+data.begun={tmp_path}/begun", f"+data.gate={tmp_path}/gate"]
    command = [*inputs, *source, "seed=0,1"]
    arguments = [str(ROOT / "train.py"), "-m", *command, "output_dir=sweep"]
    with subprocess.Popen([*warm_python(), *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as first:
        while not (tmp_path / "begun").exists():
            assert first.poll() is None
            time.sleep(0.05)
        end = run_sweep(tmp_path / "sweep", *command)
        assert end.code == f"error: {tmp_path}/sweep {IN_USE}"
        first.send_signal(signal.SIGKILL)
    (tmp_path / "gate").touch()
    deadline = time.monotonic() + 60
    while isinstance((end := run_sweep(tmp_path / "sweep", *command, "resume=auto")).code, str):
        # The server of commands kills its process a moment later.
        assert time.monotonic() < deadline, end
        time.sleep(0.2)
    assert end.code == 0, end.err
    # The lock is free although this process goes on.
    hold = [sys.executable, "-c", HOLD, str(tmp_path / "sweep" / ".lock")]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.kill()
