"""A new run in an old folder removes the files of the earlier run, and nothing else."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import gating
from gating.run.folder import earlier_run
from gating.run.folder.earlier_run import clearing
from gating.storage.written import note_written
from tests.storage.test_results import put, snapshot
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs, "trainer.max_steps=4", "distillation=logits"]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_in(folder, inputs, "keep_checkpoints=true")
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if not path.is_dir() and path.name not in (".lock", ".written"))
    return {path.relative_to(folder).as_posix() for path in paths}


def test_clearing_removes_only_files_of_the_run(run):
    mine = ["notes.txt", "csv/mine.csv", "report/thesis.tex", "checkpoints/mine.ckpt", "checkpoints/search/best.ckpt"]
    for name in mine:
        put(run, name)
    with clearing(run, run / "checkpoints"):
        assert files(run) == {*mine, ".config.yaml.old"}
    assert files(run) == set(mine)


def test_events_of_another_program_stay_beside_those_of_the_run(inputs, run, tmp_path):
    events = ["tensorboard/events.out.tfevents.1.theirs", "tensorboard/notes.txt", "wandb/run-20260101_000000-theirs/x"]
    for name in events:
        put(run, name)
    with at_batch(1, interrupt), pytest.raises(Interrupted):
        run_in(run, inputs, "overwrite=true")
    assert files(run) == {"config.yaml", "inputs.json", *events}
    settings = ["logger=tensorboard", "callbacks.checkpoint.every_n_steps=1"]
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(run, inputs, "overwrite=true", "distillation=none", *settings)
    own = {name for name in files(run) if name.startswith("tensorboard")}.difference(events)
    assert own
    # A resumed run cuts its own events off, and leaves those of others.
    with at_batch(2, interrupt), pytest.raises(Interrupted):
        run_in(run, inputs, "resume=auto", "distillation=none", *settings)
    assert files(run).issuperset(events)
    with clearing(run, run / "checkpoints"):
        assert files(run) == {".config.yaml.old", *events}
    assert all((run / name).read_text() == "precious" for name in events)


LATER = ["report/index.html", "report/gates.png", "metrics.json", "compact/config.json", "teacher/config.json"]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *((name, "overwrite=true") for name in [*LATER, "checkpoints/search/step-99.ckpt"]),
        *((name, "resume=auto") for name in LATER if name != "metrics.json"),
    ],
)
def test_files_that_an_unfinished_run_has_not_written_yet_stay(name, command, inputs, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    with at_batch(2, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, "callbacks.checkpoint.every_n_steps=1")
    if name.endswith("config.json"):
        # A model, even a compact one, of somebody else.
        shutil.copytree(finished / Path(name).parent, folder / Path(name).parent)
    else:
        put(folder, name)
    before = snapshot(folder)
    with at_batch(1, interrupt):
        assert end_of(folder, inputs, command) == 1
    said = "holds a checkpoint of another run" if "ckpt" in name else "was not written by a run"
    assert said in capsys.readouterr().err
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["search/step-99.ckpt", "removed/step-3.ckpt", "recovery/step-500.ckpt"])
@pytest.mark.parametrize("command", ["resume=auto", "ckpt_path={run}/checkpoints/search/step-1.ckpt"])
def test_checkpoints_that_a_run_has_not_recorded_stay(name, command, inputs, tmp_path, capsys):
    run, settings = tmp_path / "run", ["distillation=none", "callbacks.checkpoint.every_n_steps=1"]
    with at_batch(2, interrupt), pytest.raises(Interrupted):
        run_in(run, inputs, *settings)
    put(run / "checkpoints", name)
    before = snapshot(run)
    with at_batch(1, interrupt):
        assert end_of(run, inputs, *settings, command.format(run=run)) == 1
    assert f"{run}/checkpoints/{name} is not recorded as a checkpoint of this run" in capsys.readouterr().err
    assert snapshot(run) == before


def test_a_checkpoint_that_comes_during_the_run_stays(inputs, tmp_path):
    settings = ["distillation=none", "callbacks.checkpoint.every_n_steps=1"]
    mine = tmp_path / "run" / "checkpoints" / "search" / "step-99.ckpt"
    with at_batch(2, lambda: put(mine.parent, mine.name)):
        run_in(tmp_path / "run", inputs, *settings)
    assert mine.read_text() == "precious"


def test_a_checkpoint_of_a_backup_is_gone_on_from_by_its_name(inputs, tmp_path):
    run, dense = tmp_path / "run", ["distillation=none", "callbacks.checkpoint.every_n_steps=1"]
    with at_batch(2, interrupt), pytest.raises(Interrupted):
        run_in(run, inputs, *dense)
    backup = shutil.copy(run / "checkpoints" / "search" / "step-1.ckpt", tmp_path)
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(run, inputs, *dense, "resume=auto")
    assert not (run / "checkpoints" / "search" / "step-1.ckpt").exists()
    shutil.copy(backup, run / "checkpoints" / "search")
    with at_batch(99, interrupt) as steps:
        run_in(run, inputs, *dense, f"ckpt_path={run}/checkpoints/search/step-1.ckpt")
    assert steps[0] == 1


def test_a_run_without_its_record_is_not_resumed(inputs, tmp_path, capsys):
    run, settings = tmp_path / "run", ["distillation=none", "callbacks.checkpoint.every_n_steps=1"]
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(run, inputs, *settings)
    (run / ".written").unlink()
    before = snapshot(run)
    with at_batch(1, interrupt):
        assert end_of(run, inputs, *settings, "resume=auto") == 1
    assert f"{run / '.written'} is missing, the record of the files that the run has written" in capsys.readouterr().err
    assert snapshot(run) == before


@pytest.mark.parametrize("name", ["compact", "teacher"])
def test_another_model_in_the_place_of_one_of_the_run_stays(name, inputs, run, tmp_path, capsys):
    compact = gating.load_compact(run / "compact")
    with torch.no_grad():
        compact.classifier.bias += 1
    shutil.rmtree(run / name)
    gating.save_compact(compact, run / name)
    before = snapshot(run)
    with at_batch(1, interrupt):
        assert end_of(run, inputs, "overwrite=true") == 1
    assert f"{run / name} is another model than the one that a run has written there" in capsys.readouterr().err
    assert snapshot(run) == before


def test_settings_without_the_record_of_their_run_allow_no_removal(inputs, finished, tmp_path, capsys):
    shutil.copy(finished / "config.yaml", tmp_path)
    for name in ("csv/metrics.csv", "report/index.html", "checkpoints/search/step-2.ckpt"):
        put(tmp_path, name)
    before = snapshot(tmp_path)
    with at_batch(1, interrupt):
        assert end_of(tmp_path, inputs, "overwrite=true") == 1
    assert "config.yaml was not written by a run" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_a_record_names_no_files_but_those_of_runs(run, tmp_path):
    mine = ["notes.txt", "report/thesis.tex", "tensorboard/notes.txt", "../outside.txt"]
    for name in mine:
        put(run, name)
    note_written(run, *mine, str(tmp_path / "outside.txt"), "tensorboard/events.out.tfevents.1/../../notes.txt", "..")
    with clearing(run, run / "checkpoints"):
        assert all((run / name).read_text() == "precious" for name in mine)


def test_a_folder_that_no_run_has_made_is_left_as_it_is(tmp_path):
    for name in ("compact/file", "csv/metrics.csv", "metrics.json", "checkpoints/search/best.ckpt"):
        put(tmp_path, name)
    (tmp_path / "config.yaml").write_text("convergence:\n  _target_: gating.Convergence\n")
    before = snapshot(tmp_path)
    with clearing(tmp_path, tmp_path / "checkpoints"):
        assert snapshot(tmp_path) == before


def test_a_clearing_that_is_interrupted_is_ended_by_the_next_one(run, monkeypatch):
    monkeypatch.setattr(earlier_run, "remove_model", lambda _: interrupt())
    with pytest.raises(Interrupted), clearing(run, run / "checkpoints"):
        pass
    monkeypatch.undo()
    assert not (run / "config.yaml").exists()
    with clearing(run, run / "checkpoints"):
        pass
    assert files(run) == set()


CONFIGS = {
    "a part of this package": "convergence:\n  _target_: gating.Convergence\n",
    "groups of the same names": "".join(
        f"{group}:\n  _target_: gating.Convergence\n"
        for group in ("model", "task", "data", "objective", "trainer", "callbacks", "logger", "paths")
    ),
    "nothing": "",
}


@pytest.mark.parametrize("config", CONFIGS)
def test_settings_of_something_else_are_not_replaced(config, inputs, tmp_path, capsys):
    for name in ("compact/thesis.tex", "csv/table.csv", "report/report.tex", "teacher/photo.jpg"):
        put(tmp_path / "project", name)
    (tmp_path / "project" / "config.yaml").write_text(CONFIGS[config])
    before = snapshot(tmp_path)
    assert end_of(tmp_path / "project", inputs, "overwrite=true") == 1
    assert "config.yaml was not written by a run, and a new run would overwrite it" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["compact/thesis.tex", "teacher/photo.jpg", "csv/metrics.csv", "report/index.html"])
@pytest.mark.parametrize("is_run", [False, True])
def test_obstacles_in_the_place_of_results_are_refused_before_the_run(name, is_run, inputs, run, tmp_path, capsys):
    folder = run if is_run else tmp_path / "other"
    put(folder, name)
    before = snapshot(folder)
    with at_batch(1, interrupt):
        if is_run and name.startswith(("csv", "report")):
            with pytest.raises(Interrupted):
                run_in(folder, inputs, "overwrite=true")
            return
        assert end_of(folder, inputs, "overwrite=true") == 1
    assert name.partition("/")[0] in capsys.readouterr().err
    assert snapshot(folder) == before


def test_a_new_run_in_a_folder_of_other_things_leaves_them(inputs, tmp_path):
    mine = ["notes.txt", "csv/mine.csv", "report/thesis.tex", "checkpoints/search/best.ckpt", ".git/HEAD"]
    for name in mine:
        put(tmp_path / "run", name)
    for settings in ([], ["seed=1"]):
        run_in(tmp_path / "run", inputs, "overwrite=true", *settings)
        assert all((tmp_path / "run" / name).read_text() == "precious" for name in mine)
        assert (tmp_path / "run" / "compact" / "model.safetensors").is_file()


def test_a_damaged_run_can_be_begun_again(inputs, tmp_path):
    folder = tmp_path / "run"
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, "callbacks.checkpoint.every_n_steps=1")
    (folder / "config.yaml").write_text("seed: [")
    with at_batch(1, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, "overwrite=true")
    assert files(folder) == {"config.yaml", "inputs.json"}


READ = ["model.name={run}/compact", "model.tokenizer={run}/compact", "distillation.teacher={run}/teacher"]
READ += ["data.train={run}/csv/metrics.csv", "model.name={link}/compact", "model.name={run}/csv/../compact"]


@pytest.mark.parametrize("setting", READ)
def test_inputs_of_a_new_run_are_not_replaced_by_it(setting, inputs, run, tmp_path, capsys):
    (tmp_path / "link").symlink_to(run)
    before = snapshot(run)
    given = setting.format(run=run, link=tmp_path / "link")
    assert end_of(run, inputs, "overwrite=true", given) == 1
    assert f"error: {given} is in the run that this one replaces" in capsys.readouterr().err
    assert snapshot(run) == before


@pytest.mark.parametrize("text", ["~nobody/x", "x" * 5000, "a\\0b", "${oc.env:HOME}", "org/name"])
def test_a_text_that_is_no_path_is_in_no_run(text, inputs, run):
    with at_batch(1, interrupt), pytest.raises((Interrupted, ValueError, OSError)) as caught:
        run_in(run, inputs, "overwrite=true", f"data.text_column='{text}'")
    assert "replaces" not in str(caught.value)


@pytest.mark.parametrize("name", ["compact", "teacher", "csv", "report", "checkpoints"])
def test_targets_of_links_are_kept(name, inputs, run, tmp_path):
    far = tmp_path / "far"
    shutil.move(run / name, far)
    (run / name).symlink_to(far)
    before = snapshot(far)
    with clearing(run, run / "checkpoints" if name != "checkpoints" else tmp_path / "elsewhere"):
        assert snapshot(far) == before


def test_going_back_to_a_teacher_forgets_that_of_this_run_alone(inputs, tmp_path):
    put(tmp_path / "run", "deep/teacher/precious.txt")
    place = ["paths.checkpoints=${output_dir}/deep/checkpoints", "callbacks.checkpoint.every_n_steps=1"]
    with at_batch(6, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs, *place, "overwrite=true")
    assert os.listdir(tmp_path / "run" / "teacher")
    checkpoint = tmp_path / "run" / "deep" / "checkpoints" / "teacher" / "step-3.ckpt"
    with at_batch(1, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs, *place, f"ckpt_path={checkpoint}")
    assert not (tmp_path / "run" / "teacher").exists()
    assert (tmp_path / "run" / "deep" / "teacher" / "precious.txt").exists()


@pytest.mark.parametrize("name", ["csv", "report", "checkpoints/search"])
@pytest.mark.parametrize("command", ["overwrite=true", "resume=auto"])
def test_nothing_is_written_through_a_link_out_of_the_run(name, command, inputs, run, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    shutil.rmtree(run / name, ignore_errors=True)
    for file in ("metrics.csv", "gates.png", "step-5.ckpt"):
        put(elsewhere, file)
    (run / name).symlink_to(elsewhere)
    if command == "resume=auto":
        (run / "metrics.json").unlink()
    before = snapshot(tmp_path)
    assert end_of(run, inputs, command) == 1
    assert "outside the run's folder: replace it by a copy, or remove it" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_a_model_in_the_place_of_a_teacher_that_the_run_never_had_stays(inputs, tmp_path, capsys):
    dense = [line for line in inputs if not line.startswith("distillation")]
    run_in(tmp_path / "run", dense)
    shutil.copytree(tmp_path / "run" / "compact", tmp_path / "run" / "teacher")
    before = snapshot(tmp_path)
    assert end_of(tmp_path / "run", dense, "overwrite=true") == 1
    assert "teacher was not written by a run" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
