"""The folders that commands take: of a model, of a run, and of a sweep, which they refuse."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from gating import __main__ as command_line
from tests.support.sweeps import write_run
from tests.support.tiny_run import make_model_folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Call a command; return its error."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(sys, "argv", ["head-gating", *map(str, arguments)])
    try:
        command_line.main()
    except SystemExit as end:
        return str(end.code)
    return ""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    folder = write_run(tmp_path / "run")
    make_model_folder(folder / "compact")
    return folder


def make_sweep(folder: Path) -> Path:
    """Write the records of a sweep with jobs 0 to 2, of which the last is not finished."""
    for number in range(3):
        (folder / str(number) / ("compact" if number < 2 else "")).mkdir(parents=True)
        job = {"number": number, "overrides": [], "folder": str(number), "reason": None}
        (folder / ".jobs").mkdir(exist_ok=True)
        (folder / ".jobs" / f"{number}.json").write_text(json.dumps(job))
    return folder


def test_inspect_takes_a_run(run, monkeypatch, capsys):
    assert call(monkeypatch, "inspect", run) == ""
    shown = " ".join(capsys.readouterr().out.split())
    assert "12 of 12 heads" in shown
    assert f"{run}/compact" in shown.replace(" ", "")[-400:]


@pytest.mark.runs
@pytest.mark.filterwarnings("ignore")  # Of torch's and transformers' own tracing.
def test_export_takes_a_run(run, monkeypatch, capsys):
    assert call(monkeypatch, "export", run, "--format", "torch") == ""
    assert f"{run}/compact-torch: " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "export", "evaluate"])
def test_an_unfinished_run_is_called_so(command, run, monkeypatch):
    shutil.rmtree(run / "compact")
    error = call(monkeypatch, command, run)
    assert error == f"error: The run in {run} is not finished: {run}/compact does not exist."


def test_of_a_sweep_its_finished_jobs_are_named(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path / "sweep")
    for command in ("inspect", "export", "evaluate"):
        assert "is the folder of a sweep: name one of its finished jobs (0, 1)" in call(monkeypatch, command, sweep)


def test_a_folder_that_is_not_there_is_called_so(tmp_path, monkeypatch):
    assert call(monkeypatch, "evaluate", tmp_path / "nothing").startswith(f"error: There is no folder {tmp_path}/nothi")


def test_an_existing_export_is_refused_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (run / "compact" / "model.safetensors").write_text("damaged")
    error = call(monkeypatch, "export", run, "--format", "torch", "--output", tmp_path / "mine")
    assert error == f"error: {tmp_path}/mine exists already. Choose another place, or pass --overwrite."
