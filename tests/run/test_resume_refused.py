"""Folders and commands that would replace another run are refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pytorch_lightning.callbacks import EarlyStopping

import train
from gating.run.folder.claim import check_claim, claim_folder
from gating.run.folder.contents import RunPaths
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in
from tests.support.tiers import first_of
from tests.support.tiny_run import compose_settings


@pytest.mark.runs
def test_checkpoints_of_another_run_are_neither_taken_nor_removed(inputs, tmp_path, capsys):
    shared = tmp_path / "shared"
    place = f"paths.checkpoints={shared}"
    (shared / "search").mkdir(parents=True)
    (shared / "search" / "mine.txt").write_text("precious")
    with at_batch(6, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "one", inputs, place)
    before = sorted(shared.rglob("*"))
    assert end_of(tmp_path / "two", inputs, place, "seed=7") == 1
    assert f"{place} holds a checkpoint of another run, {shared}/search/step-4.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()
    assert sorted(shared.rglob("*")) == before
    run_in(tmp_path / "one", inputs, place, "resume=auto")
    assert (shared / "search" / "mine.txt").read_text() == "precious"


@pytest.mark.runs
@pytest.mark.parametrize("place", ["{run}/../shared", "{run}/linked"])
def test_checkpoints_of_another_run_are_found_wherever_a_path_leads(place, inputs, tmp_path, capsys):
    checkpoint = tmp_path / "shared" / "search" / "step-4.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("precious")
    folder = tmp_path / "run"
    if "linked" in place:
        folder.mkdir()
        (folder / "linked").symlink_to(tmp_path / "shared")
    assert end_of(folder, inputs, "overwrite=true", f"paths.checkpoints={place.format(run=folder)}") == 1
    assert "holds a checkpoint of another run" in capsys.readouterr().err
    assert checkpoint.read_text() == "precious"


@pytest.mark.runs
def test_a_run_does_not_resume_from_the_checkpoints_of_another(inputs, half, tmp_path, capsys):
    with at_batch(6, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "other", inputs, "seed=2")
    before = sorted((tmp_path / "other").rglob("*"))
    assert end_of(half, inputs, "resume=auto", f"paths.checkpoints={tmp_path}/other/checkpoints") == 1
    assert f"has its checkpoints in {half}/checkpoints, and this command" in capsys.readouterr().err
    assert sorted((tmp_path / "other").rglob("*")) == before


@pytest.mark.runs
def test_numbers_of_something_else_do_not_make_a_run_a_finished_one(inputs, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    with at_batch(1, interrupt):
        assert end_of(folder, inputs, "overwrite=true") == 1
    assert "metrics.json was not written by a run" in capsys.readouterr().err
    assert (folder / "metrics.json").read_text() == "{}"


@pytest.mark.parametrize("name", first_of(["metrics.json", "config.yaml"]))
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(name, inputs, tmp_path, capsys):
    (tmp_path / "run" / name).mkdir(parents=True)
    with at_batch(1, interrupt):
        assert end_of(tmp_path / "run", inputs, "overwrite=true") == 1
    assert f"{name} is a folder; move or remove it" in capsys.readouterr().err


DAMAGED = ["", "seed: [", "- 1", "seed: 0", "objective: null", "\x00\x01", "objective: x\nmodel: y"]


@pytest.mark.parametrize("text", first_of(DAMAGED))
def test_damaged_settings_are_refused_with_the_name_of_their_file(text, inputs, half, capsys):
    (half / "config.yaml").write_text(text)
    assert end_of(half, inputs, "resume=auto") == 1
    with pytest.raises(SystemExit):
        train.guarded_run(compose_settings([f"resume={half}"]), [f"resume={half}"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith(f"error: {half / 'config.yaml'} ") and "overwrite=true" in line for line in said)


@pytest.mark.runs
def test_a_finished_run_is_left_alone(inputs, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with at_batch(1, interrupt):
        run_in(whole, inputs, "resume=auto")
    assert "is finished; there is nothing to resume" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


class OwnStopping(EarlyStopping):
    """A callback of a user that ends a training."""


REFUSED = {
    "": "holds an unfinished run. Pass resume=auto",
    "resume=auto seed=3": "has seed=0, and this command seed=3",
    "resume=auto objective.num_heads=5": "has objective.num_heads=4, and this command objective.num_heads=5",
    "resume=auto objective=topk": "has objective=budget, and this command objective=topk: it is",
    "resume=auto objective=random": "has objective=budget, and this command objective._target_=gating.IterativePruning",
    "resume=auto data.batch_size=4": "data.batch_size=4",
    "resume=auto gates.temperature=0.5": "and this command gates.temperature=0.5",
    "resume=auto callbacks=early_stopping": "this command callbacks.early_stopping._target_=",
    "resume=auto +callbacks.own._target_=tests.run.test_resume_refused.OwnStopping +callbacks.own.monitor=val/loss": (
        "has callbacks.own._target_=None, and this command callbacks.own._target_="
    ),
    "resume=auto trainer.limit_train_batches=1": "has trainer.limit_train_batches=1.0, and this command",
    "resume=auto trainer.limit_val_batches=1": "has trainer.limit_val_batches=1.0, and this command",
    "resume=auto objective.cost=latency": "has objective.cost=macs, and this command objective.cost=latency",
    "resume=auto +trainer.benchmark=true": "trainer.benchmark=None, and",
    "resume=elsewhere": "leave output_dir out",
    "ckpt_path=nowhere.ckpt": "no such file",
    "ckpt_path=HALF/config.yaml": "is not a checkpoint of this run; checkpoints are",
    "ckpt_path=HALF/checkpoints/search/step-4.ckpt resume=elsewhere": "leave one of them out",
}


@pytest.mark.runs
@pytest.mark.parametrize("settings", REFUSED)
def test_another_run_is_refused_and_left_unchanged(settings, inputs, half, capsys):
    before = {path: path.stat().st_mtime_ns for path in half.rglob("*") if path.name != ".lock"}
    given = settings.replace("HALF", str(half)).split()
    assert end_of(half, inputs, *given) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert REFUSED[settings] in error
    assert {path: path.stat().st_mtime_ns for path in half.rglob("*") if path.name != ".lock"} == before


def test_other_data_than_before_are_refused(inputs, half, capsys):
    table = next(x for x in inputs if x.startswith("data.train=")).partition("=")[2]
    shorter = half.parent / "train.tsv"
    shutil.copy(table, half.parent / "copy.tsv")
    shorter.write_text("\n".join(Path(table).read_text().splitlines()[:-4]) + "\n")
    shutil.copy(shorter, table)
    try:
        assert end_of(half, inputs, "resume=auto") == 1
    finally:
        shutil.copy(half.parent / "copy.tsv", table)
    assert "has 60 rows, and had 64" in capsys.readouterr().err


@pytest.mark.runs
def test_a_run_that_another_process_is_at_is_left_to_it(inputs, half, capsys, tmp_path):
    script = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True)"
    script += "; input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(half / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert end_of(half, inputs, "resume=auto") == 1
        other.kill()
    assert "is being trained by another process" in capsys.readouterr().err


def test_only_one_process_takes_a_folder_and_a_new_run_forgets_the_old_one(tmp_path):
    (tmp_path / "checkpoints" / "search").mkdir(parents=True)
    (tmp_path / "checkpoints" / "mine").mkdir()
    paths = RunPaths(tmp_path, tmp_path / "checkpoints")
    settings = {"overwrite": True, "ckpt_path": None}
    found = check_claim(paths, settings=settings, resumes=False)
    (lock,) = claim_folder(paths, settings=settings, config="seed: 0\n", inputs={}, found=found)
    with lock:
        assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["mine"]
