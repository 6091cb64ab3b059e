"""The folder of a run: nothing in it is lost, one process has it, and it goes back to a checkpoint."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gating.run.folder import RunFolder, is_finished, read_numbers
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in
from tests.support.outcome import snapshot
from tests.support.resumed import resume

HOLD = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"


def begin_in(folder: Path, **settings: bool) -> None:
    with RunFolder(folder, resumes=False, **settings) as place:
        place.begin("seed: 0\n", {})


@pytest.mark.parametrize("name", ["mine/precious.txt", "config.yaml", "metrics.json", "compact/model.safetensors"])
def test_what_is_in_the_place_of_a_new_run_is_renamed(name, tmp_path, caplog):
    folder = tmp_path / "run"
    for number in (1, 2):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"precious {number}")
        with pytest.raises(FileExistsError, match=r"(?i)overwrite=true"):
            begin_in(folder)
        begin_in(folder, overwrite=True)
        assert (tmp_path / f"run.{number}" / name).read_text() == f"precious {number}"
        assert f"run was renamed to {tmp_path}/run.{number}" in caplog.text
        assert {path.name for path in folder.iterdir()} == {"config.yaml", "inputs.json", ".lock"}


def test_a_refused_run_changes_nothing(inputs, half, tmp_path, capsys):
    for settings in (
        ["overwrite=true", "data.text_column=body"],
        ["resume=auto", "seed=3"],
        [],
        ["overwrite=true", "seed=-1"],
    ):
        before = snapshot(half)
        assert end_of(half, inputs, *settings) == 1
        assert capsys.readouterr().err.startswith("error: ")
        assert snapshot(half) == before
    assert end_of(tmp_path / "new" / "run", inputs, "data.text_column=body") == 1
    assert not (tmp_path / "new" / "run").exists()


def test_checkpoints_elsewhere_are_renamed_with_an_earlier_run(tmp_path):
    checkpoints = tmp_path / "disk"
    for overwrite in (False, True):
        with RunFolder(tmp_path / "run", checkpoints=checkpoints, resumes=False, overwrite=overwrite) as folder:
            folder.begin("seed: 0\n", {})
            (checkpoints / "search").mkdir()
            (checkpoints / "search" / f"step-{int(overwrite)}.ckpt").touch()
    assert (tmp_path / "disk.1" / "search" / "step-0.ckpt").exists()
    with (
        pytest.raises(FileExistsError, match=r"paths\.checkpoints"),
        RunFolder(tmp_path / "other", checkpoints=checkpoints, resumes=False),
    ):
        pass
    assert not (tmp_path / "other").exists()


@pytest.mark.processes
@pytest.mark.parametrize("place", ["run", "disk"])
def test_one_process_has_a_folder(place, tmp_path):
    (tmp_path / place).mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / place / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match="trained by another process"),
            RunFolder(tmp_path / "run", checkpoints=tmp_path / "disk", resumes=False, overwrite=True),
        ):
            pass
        other.kill()
    with RunFolder(tmp_path / "run", checkpoints=tmp_path / "disk", resumes=False, overwrite=True) as folder:
        folder.begin("seed: 0\n", {})


def test_numbers_of_a_later_format_are_refused(whole, tmp_path):
    numbers = json.loads((whole / "metrics.json").read_text(encoding="utf-8"))
    assert read_numbers(whole)["format"] == 1
    (tmp_path / "metrics.json").write_text(json.dumps(numbers | {"format": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match="has the format 2, and this version reads format 1"):
        read_numbers(tmp_path)


def test_only_the_first_process_of_a_run_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with RunFolder(tmp_path / "run", resumes=False):
        assert not (tmp_path / "run").exists()


@pytest.mark.runs
def test_a_run_goes_back_to_a_checkpoint_whose_successors_were_moved_away(inputs, whole, tmp_path):
    folder, away = tmp_path / "run", tmp_path / "away"
    with at_batch(11, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, "callbacks.checkpoint.every_n_steps=1")
    away.mkdir()
    for later in ("search/step-9.ckpt", "removed", "recovery"):
        (folder / "checkpoints" / later).rename(away / Path(later).name)
    with at_batch(99, interrupt) as steps:
        assert resume(folder) == 0
    assert steps == [8, 9, 10, 11]
    assert (folder / "compact" / "model.safetensors").read_bytes() == (
        whole / "compact" / "model.safetensors"
    ).read_bytes()


@pytest.mark.runs
def test_a_finished_run_keeps_no_checkpoints_but_those_asked_for(begun, tmp_path, capsys):
    mine = ["checkpoints/mine.ckpt", "checkpoints/search/best.ckpt", "checkpoints/old/step-4.ckpt"]
    for kept in (False, True):
        run = Path(shutil.copytree(begun, tmp_path / f"run-{kept}"))
        for name in mine:
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text("precious")
        capsys.readouterr()
        assert resume(run, f"keep_checkpoints={str(kept).lower()}") == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Its checkpoints "))
        assert (f"in {run}/checkpoints take " if kept else "were removed; keep_checkpoints=true keeps them.") in line
        left = {str(path.relative_to(run)) for path in (run / "checkpoints").rglob("*") if path.is_file()}
        assert left >= set(mine)
        assert (left == set(mine)) == (not kept)


@pytest.mark.runs
def test_a_finished_run_is_left_alone(whole, capsys):
    before = snapshot(whole)
    assert resume(whole) == 0
    assert "there is nothing to resume" in capsys.readouterr().out
    assert snapshot(whole) == before


@pytest.mark.runs
def test_a_run_goes_on_at_another_place(begun, tmp_path):
    moved = Path(shutil.copytree(begun, tmp_path / "moved"))
    assert resume(moved) == 0
    assert is_finished(moved)
    assert not is_finished(begun)
