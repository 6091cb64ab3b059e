"""Sweeps: failed jobs, returned values, and signals."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

import train
from gating.run.folder import RunFolder
from gating.run.sweep.jobs import jobs_of
from gating.training.signals import Unfinished
from tests.support.sweeps import write_run
from tests.support.tiers import first_of
from tests.support.tiny_run import ROOT, run_command
from tests.support.two_processes import TWO
from tests.support.warm_python import warm_python


def sweep(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int | str | None:
    """Run a sweep in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *arguments, f"output_dir={folder}"])
    # Hydra finds the file of the function that it was given.
    try:
        train.main()
    except SystemExit as end:
        return end.code
    return 0


def run_instead(monkeypatch: pytest.MonkeyPatch, action) -> list[int]:
    """Let jobs do something else than run, and then be finished; return their seeds as they come."""
    seeds = []
    before = write_run(Path(tempfile.mkdtemp()) / "run")

    def run(cfg, *_, ending, **__):
        seeds.append(cfg["seed"])
        with ending(RunFolder(Path(cfg["output_dir"]), resumes=False)):
            value = action(cfg)
        shutil.copytree(before, cfg["output_dir"], dirs_exist_ok=True)
        return value

    monkeypatch.setattr(train, "run", run)
    return seeds


def fail_at(*seeds: int, error: BaseException):
    def action(cfg):
        if cfg["seed"] in seeds:
            raise error
        return float(cfg["seed"])

    return action


@pytest.mark.parametrize("batches", first_of([[], ["hydra.sweeper.max_batch_size=1"]]))
def test_later_jobs_run_and_all_failures_are_listed(batches, tmp_path, monkeypatch, capsys):
    seeds = run_instead(monkeypatch, fail_at(1, 3, error=FileNotFoundError(2, "No such file", "data.tsv")))
    assert sweep(monkeypatch, tmp_path, "seed=0,1,2,3", *batches) == 1
    assert seeds == [0, 1, 2, 3]
    err = capsys.readouterr().err
    assert err.count("error: [Errno 2] No such file: 'data.tsv'\n") == 2
    assert "Traceback" not in err
    assert err.splitlines()[-3:] == [
        "error: 2 job(s) of the sweep failed:",
        f"  {tmp_path}/1 (seed=1): [Errno 2] No such file: 'data.tsv'",
        f"  {tmp_path}/3 (seed=3): [Errno 2] No such file: 'data.tsv'",
    ]


@pytest.mark.runs
def test_a_fault_of_the_program_keeps_its_traceback_and_the_next_job_runs(tmp_path, monkeypatch, capsys):
    seeds = run_instead(monkeypatch, fail_at(1, error=KeyError("lost")))
    assert sweep(monkeypatch, tmp_path, "seed=0,1,2") == 1
    assert seeds == [0, 1, 2]
    err = capsys.readouterr().err
    assert err.count("Traceback (most recent call last)") == 1
    assert f"  {tmp_path}/1 (seed=1): KeyError: 'lost'" in err


def test_an_unfinished_job_is_listed_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    error = Unfinished("search", step=3, num_steps=9, reason="trainer.max_time=00:00:00:01 is over")
    seeds = run_instead(monkeypatch, fail_at(0, error=error))
    assert sweep(monkeypatch, tmp_path, "seed=0,1") == 1
    assert seeds == [0, 1]
    assert f"  {tmp_path}/0 (seed=0): The search phase was interrupted after 3 of 9 steps" in capsys.readouterr().err


@pytest.mark.parametrize("number", first_of([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
def test_a_signal_ends_the_sweep(number, tmp_path, monkeypatch):
    def interrupt(cfg):
        os.kill(os.getpid(), number)
        time.sleep(5)

    seeds = run_instead(monkeypatch, interrupt)
    assert sweep(monkeypatch, tmp_path, "seed=0,1,2") == 128 + number
    assert seeds == [0]


@pytest.mark.runs
def test_failures_of_an_earlier_sweep_are_forgotten(tmp_path, monkeypatch, capsys):
    run_instead(monkeypatch, fail_at(1, error=FileNotFoundError(2, "No such file", "data.tsv")))
    assert sweep(monkeypatch, tmp_path, "seed=0,1") == 1
    run_instead(monkeypatch, lambda cfg: 1.0)
    assert sweep(monkeypatch, tmp_path, "seed=0,1", "overwrite=true") == 0
    assert [job.reason for job in jobs_of(tmp_path)] == [None, None]


@pytest.mark.runs
def test_no_secret_of_a_failed_job_is_kept(tmp_path, monkeypatch, capsys):
    run_instead(monkeypatch, fail_at(0, error=FileNotFoundError(2, "No such file", "https://me:pass@host/x")))
    assert sweep(monkeypatch, tmp_path, "seed=0", "+model.token=s3ntinel-token") == 1
    (record,) = tmp_path.glob(".jobs/[0-9]*.json")
    assert "s3ntinel" not in record.read_text()
    assert "me:pass" not in record.read_text()
    assert "No such file" in record.read_text()


class Remembering(Sweeper):
    """A sweeper that starts two jobs in sequence and records the returned numbers, as Optuna's does."""

    def __init__(self, returned: list) -> None:
        self.returned = returned

    def setup(self, *, hydra_context, task_function, config):
        launcher = Plugins.instance().instantiate_launcher
        self.launcher = launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments):
        for job, seed in enumerate((0, 1)):
            (result,) = self.launcher.launch([[*arguments, f"seed={seed}"]], initial_job_idx=job)
            self.returned.append(result.return_value)


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list:
    values: list = []
    monkeypatch.setattr(Plugins, "instantiate_sweeper", lambda *_, **arguments: _set_up(values, **arguments))
    return values


def _set_up(values: list, **arguments) -> Remembering:
    sweeper = Remembering(values)
    sweeper.setup(**arguments)
    return sweeper


def test_a_sweeper_gets_the_value_of_each_job_and_none_of_a_failed_one(returned, tmp_path, monkeypatch):
    run_instead(monkeypatch, fail_at(0, error=FileNotFoundError(2, "No such file", "data.tsv")))
    assert sweep(monkeypatch, tmp_path) == 1
    assert returned == [None, 1.0]


@pytest.mark.processes
@pytest.mark.slow
def test_processes_of_a_sweep_begin_again_after_a_failed_job(inputs, tmp_path):
    settings = [*inputs, *TWO, "logger=csv", "optimizer.lr=1e-3,1e30,2e-3", "output_dir=sweep"]
    process = run_command(["-m", *settings], cwd=tmp_path)
    assert process.returncode == 1
    assert "  sweep/1 (optimizer.lr=1e+30): The loss is not a number" in process.stderr
    assert process.stderr.count("of the sweep failed") == 1
    assert [(tmp_path / "sweep" / str(job) / "metrics.json").exists() for job in range(3)] == [True, False, True]


@pytest.mark.processes
def test_ctrl_c_ends_a_sweep_of_the_command_line(inputs, tmp_path):
    command = [*warm_python(), str(ROOT / "train.py"), "-m", *inputs, "logger=csv", "seed=0,1", "output_dir=sweep"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "sweep" / "0" / "csv").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Stopped by SIGINT" in err
    assert not (tmp_path / "sweep" / "1").exists()
