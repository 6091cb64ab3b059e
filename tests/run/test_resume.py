"""Runs that are interrupted and go on: they end as if nothing had happened."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from benchmarks.faults.outcome import Outcome
from gating.report.summary import Summary
from gating.run import prepare as preparation
from gating.run import stages
from gating.run.folder.contents import RunPaths
from gating.run.folder.state import is_finished, take_folder
from gating.training.module import FineTuning
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in, steps_of_checkpoints
from tests.support.tiny_run import compose_settings, make_inputs

EACH_STEP = "callbacks.checkpoint.every_n_steps=1"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_in(folder, inputs)
    return folder


@pytest.fixture
def half(inputs, tmp_path) -> Path:
    """The folder of a run that ended in its search, at step 7 of 9, with a checkpoint after step 4."""
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs)
    return tmp_path / "run"


def assert_same_end(folder: Path, whole: Path) -> None:
    comparison = Outcome.of(whole).compare(Outcome.of(folder))
    assert all(comparison.values()), comparison


def interrupt_again_and_again(folder: Path, inputs: list[str], *settings: str, at: int) -> int:
    """Interrupt a run at the same batch after each start until it is through; return how often that was."""
    for count in range(100):
        try:
            with at_batch(at, interrupt):
                run_in(folder, inputs, "resume=auto", *settings)
        except Interrupted:
            continue
        return count
    raise AssertionError("the run does not come forward")


VARIANTS = {
    # Two of the three batches of some steps are in one epoch, the last step of an epoch has two.
    "accumulated gradients, importance": (
        ["objective=importance", "trainer.accumulate_grad_batches=3", "trainer.max_steps=8", EACH_STEP],
        5,
    ),
    "validation in an epoch, top-k": (["objective=topk", "trainer.val_check_interval=3", EACH_STEP], 2),
    "shares of epochs, Lagrangian, loader processes": (
        [
            "objective=lagrangian",
            "trainer.limit_train_batches=5",
            "trainer.val_check_interval=0.5",
            "trainer.max_steps=14",
            "callbacks.checkpoint.every_n_steps=3",
            "data.num_workers=1",
        ],
        5,
    ),
    "a search that comes to rest": (
        ["objective=random", "trainer.max_steps=20", "convergence.patience=1", "trainer.log_every_n_steps=2"],
        7,
    ),
    "teacher, half precision": (
        ["distillation=logits", "trainer.precision=bf16-mixed", "trainer.max_steps=6", EACH_STEP],
        4,
    ),
    "adapters": (["adapters=lora", "adapters.dropout=0.1", "optimizer.lr=0.01", "trainer.max_steps=8", EACH_STEP], 4),
    "dense": (["objective=none", "callbacks.checkpoint.every_n_steps=4"], 6),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_runs_that_are_interrupted_on_and_on_end_as_if_they_had_not_been(variant, inputs, tmp_path):
    settings, at = VARIANTS[variant]
    settings = [*[x for x in inputs if not (variant == "dense" and x.startswith("objective."))], *settings]
    run_in(tmp_path / "whole", settings)
    assert interrupt_again_and_again(tmp_path / "often", settings, at=at) >= 2
    assert_same_end(tmp_path / "often", tmp_path / "whole")


BETWEEN = {
    "before heads are removed": (train, "remove_heads"),
    "before the removal is on the disk": (stages, "keep_removed"),
    "before the export": (train, "export"),
    "before the numbers": (Summary, "write"),
}


@pytest.mark.parametrize("moment", BETWEEN)
def test_a_run_goes_on_between_its_phases(moment, inputs, whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*BETWEEN[moment], lambda *_, **__: interrupt())
        with pytest.raises(Interrupted):
            run_in(tmp_path / "run", inputs)
    assert not is_finished(tmp_path / "run")
    with at_batch(99, interrupt) as steps:
        run_in(tmp_path / "run", inputs, "resume=auto")
    assert steps == ([9, 10, 11] if "remov" in moment else [])  # nothing is trained again
    assert_same_end(tmp_path / "run", whole)


def test_a_removal_is_on_the_disk_before_recovery_starts(inputs, whole, tmp_path):
    with at_batch(10, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs)
    assert steps_of_checkpoints(tmp_path / "run", "removed") == [9]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "search")
    run_in(tmp_path / "run", inputs, "resume=auto")
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_answered_by_a_checkpoint_and_how_to_go_on(number, code, inputs, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    with at_batch(6, lambda: os.kill(os.getpid(), number)) as steps:
        assert end_of(folder, inputs) == code
    assert steps == list(range(6))  # the step is ended
    assert steps_of_checkpoints(folder, "search") == [4, 6]
    error = capsys.readouterr().err
    assert error == f"Stopped by {number.name}.\nThe run can go on: python train.py resume={folder}\n"
    train.guarded_run(compose_settings([f"resume={folder}"]), [f"resume={folder}"])
    assert not (folder / "wandb").exists()  # As the run was begun with logger=csv.
    assert_same_end(folder, whole)


def test_a_scheduler_that_queues_the_job_again_finds_it_at_rest(inputs, whole, tmp_path, monkeypatch):
    called = tmp_path / "called"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $* $(ls {tmp_path}/run/checkpoints/search) > {called}\n")
    (tmp_path / "scontrol").chmod(0o755)
    job = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "17"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "here"}
    for name, value in {**job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("shutil.which", lambda name: None)  # of srun, which Lightning looks for
    folder = tmp_path / "run"

    with (
        at_batch(6, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
        at_batch(8, interrupt),
        pytest.raises(Interrupted),
    ):
        run_in(folder, inputs, "resume=auto")
    monkeypatch.undo()
    assert called.read_text().split() == ["requeue", "17", "hpc_ckpt_1.ckpt", "step-4.ckpt", "step-6.ckpt"]
    assert steps_of_checkpoints(folder, "search") == [4, 6]
    assert not list(folder.rglob("hpc_ckpt*"))
    run_in(folder, inputs, "resume=auto")
    assert_same_end(folder, whole)


def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(inputs, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP)
    assert steps_of_checkpoints(folder, "search") == [6, 7]
    last = folder / "checkpoints" / "search" / "step-7.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    with at_batch(99, interrupt) as steps:
        run_in(folder, inputs, "resume=auto")
    assert steps[0] == 6
    assert "step-7.ckpt is damaged (" in capsys.readouterr().err
    assert_same_end(folder, whole)


def test_what_is_no_checkpoint_of_its_phase_is_passed_over(inputs, whole, tmp_path):
    folder = tmp_path / "run"
    with at_batch(11, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP)
    recovery, removed = folder / "checkpoints" / "recovery", folder / "checkpoints" / "removed"
    shutil.copy(removed / "step-9.ckpt", recovery / "step-11.ckpt")
    torch.save({"x": 1}, recovery / "step-12.ckpt")
    run_in(folder, inputs, "resume=auto")
    assert_same_end(folder, whole)


def test_later_damaged_checkpoints_do_not_take_the_place_of_good_ones(inputs, whole, tmp_path):
    folder = tmp_path / "run"
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP)
    for path in (folder / "checkpoints" / "search").iterdir():
        path.write_bytes(path.read_bytes()[:-1000])
    with at_batch(4, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP, "resume=auto")
    assert steps_of_checkpoints(folder, "search") == [2, 3]
    run_in(folder, inputs, "resume=auto")
    assert_same_end(folder, whole)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1000])])
def test_a_removal_that_is_lost_is_done_again_and_so_is_the_recovery(harm, inputs, whole, tmp_path):
    folder = tmp_path / "run"
    with at_batch(11, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP)
    harm(folder / "checkpoints" / "removed" / "step-9.ckpt")
    run_in(folder, inputs, "resume=auto")
    assert_same_end(folder, whole)


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


def test_a_run_does_not_go_on_with_the_checkpoints_of_another(inputs, half, tmp_path, capsys):
    with at_batch(6, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "other", inputs, "seed=2")
    before = sorted((tmp_path / "other").rglob("*"))
    assert end_of(half, inputs, "resume=auto", f"paths.checkpoints={tmp_path}/other/checkpoints") == 1
    assert f"has its checkpoints in {half}/checkpoints, and this command" in capsys.readouterr().err
    assert sorted((tmp_path / "other").rglob("*")) == before


@pytest.mark.parametrize(
    "settings",
    [["paths.checkpoints=PLACE/elsewhere"], ["paths.checkpoints=${output_dir}/deep/down"], ["+trainer.benchmark=true"]],
)
def test_a_folder_is_all_that_one_has_to_remember(settings, inputs, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    given = [line.replace("PLACE", str(tmp_path)) for line in settings]
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, *given)
    seen = []
    step = FineTuning.training_step
    monkeypatch.setattr(
        FineTuning, "training_step", lambda self, *args: (seen.append(self.step_in_run), step(self, *args))[1]
    )
    overrides = [f"resume={folder}"]
    train.guarded_run(compose_settings(overrides), overrides)
    assert seen[0] == 4
    assert_same_end(folder, whole)


def test_numbers_of_something_else_do_not_make_a_run_a_finished_one(inputs, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    with at_batch(1, interrupt):
        assert end_of(folder, inputs, "overwrite=true") == 1
    assert "metrics.json was not written by a run" in capsys.readouterr().err
    assert (folder / "metrics.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml"])
def test_a_folder_where_a_file_is_to_be_is_told_at_once(name, inputs, tmp_path, capsys):
    (tmp_path / "run" / name).mkdir(parents=True)
    with at_batch(1, interrupt):
        assert end_of(tmp_path / "run", inputs, "overwrite=true") == 1
    assert f"{name} is a folder; put it out of the way" in capsys.readouterr().err


DAMAGED = ["", "seed: [", "- 1", "seed: 0", "objective: null", "\x00\x01", "objective: x\nmodel: y"]


@pytest.mark.parametrize("text", DAMAGED)
def test_settings_that_are_damaged_are_told_with_their_file(text, inputs, half, capsys):
    (half / "config.yaml").write_text(text)
    assert end_of(half, inputs, "resume=auto") == 1
    with pytest.raises(SystemExit):
        train.guarded_run(compose_settings([f"resume={half}"]), [f"resume={half}"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith(f"error: {half / 'config.yaml'} ") and "overwrite=true" in line for line in said)


def test_a_full_disk_leaves_the_last_good_checkpoint(inputs, whole, tmp_path, capsys):
    """The system refuses to write larger files from the sixth batch on."""
    folder, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with at_batch(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))):
            assert end_of(folder, inputs) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    place = folder / "checkpoints" / "search"
    assert capsys.readouterr().err == (
        f"error: {place / 'step-8.ckpt'} cannot be written: file too large. Make room there.\n"
        f"The run can go on: python train.py resume={folder}\n"
    )
    assert [path.name for path in place.iterdir()] == ["step-4.ckpt"]
    run_in(folder, inputs, "resume=auto")
    assert_same_end(folder, whole)


def test_going_back_to_a_checkpoint_discards_what_came_after_it(inputs, whole, tmp_path):
    folder = tmp_path / "run"
    with at_batch(11, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP)
    with at_batch(99, interrupt) as steps:
        run_in(folder, inputs, f"ckpt_path={folder}/checkpoints/search/step-8.ckpt")
    assert steps == [8, 9, 10, 11]
    assert_same_end(folder, whole)


def test_auto_finds_the_latest_unfinished_run_with_the_same_settings(inputs, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "outputs" / "today" / "4"
    damaged.mkdir(parents=True)
    (damaged / "config.yaml").write_text("seed: [")
    for name, settings in {"1": [], "2": [], "3": ["seed=4"]}.items():
        with at_batch(6, interrupt), pytest.raises(Interrupted):
            run_in(Path("outputs/today") / name, inputs, *settings)
    train.run(compose_settings([*inputs, "logger=csv", "resume=auto"]))
    assert [name for name in "123" if is_finished(tmp_path / "outputs" / "today" / name)] == ["2"]
    assert_same_end(tmp_path / "outputs" / "today" / "2", whole)
    with at_batch(1, interrupt), pytest.raises(Interrupted):
        train.run(compose_settings([*inputs, "logger=csv", "resume=auto", "seed=5"]))
    assert len(list((tmp_path / "outputs").glob("*/*"))) == 5  # there was none to go on with


def test_a_finished_run_is_left_alone(inputs, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with at_batch(1, interrupt):
        run_in(whole, inputs, "resume=auto")
    assert "is finished; there is nothing to go on with" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


REFUSED = {
    "": "holds an unfinished run. Pass resume=auto",
    "resume=auto seed=3": "has seed=0, and this command seed=3",
    "resume=auto objective.num_heads=5": "has objective.num_heads=4, and this command objective.num_heads=5",
    "resume=auto objective=random": "objective._target_",
    "resume=auto data.batch_size=4": "data.batch_size=4",
    "resume=auto +trainer.benchmark=true": "trainer.benchmark=None, and",
    "resume=elsewhere": "leave output_dir out",
    "ckpt_path=nowhere.ckpt": "no such file",
    "ckpt_path=HALF/config.yaml": "none of the checkpoints",
    "ckpt_path=HALF/checkpoints/search/step-4.ckpt resume=elsewhere": "leave one of them out",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_is_not_the_same_run_is_refused_and_left_as_it_was(settings, inputs, half, capsys):
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
    assert "train data has 60 examples now and had 64" in capsys.readouterr().err


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
    assert "under way in another process" in capsys.readouterr().err


def test_a_speedup_is_not_measured_again(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "num_heads_for_speedup", lambda model, batch, *, speedup, gates: 5)
    settings = [*[x for x in inputs if not x.startswith("objective.")], "objective.speedup=2"]
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", settings)
    monkeypatch.setattr(preparation, "num_heads_for_speedup", lambda model, batch, *, speedup, gates: 6)
    run_in(tmp_path / "run", settings, "resume=auto")
    assert Outcome.of(tmp_path / "run").metrics["num_heads"] == 5


def test_the_run_at_wandb_goes_on(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    with at_batch(6, interrupt), pytest.raises(Interrupted):
        train.guarded_run(compose_settings([*inputs, f"output_dir={folder}"]))
    train.guarded_run(compose_settings([*inputs, f"output_dir={folder}", "resume=auto"]))
    segments = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert len(segments) == 2
    assert len({name.split("-")[3] for name in segments}) == 1


def test_only_one_process_takes_a_folder_and_a_new_run_forgets_the_old_one(tmp_path):
    (tmp_path / "checkpoints" / "search").mkdir(parents=True)
    (tmp_path / "checkpoints" / "mine").mkdir()
    paths = RunPaths(tmp_path, tmp_path / "checkpoints")
    with take_folder(paths, config="seed: 0\n", ckpt_path=None):
        assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["mine"]
