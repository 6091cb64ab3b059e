"""head-gating clean: checkpoints of finished runs are removed, and nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train
from gating.__main__ import main
from gating.commands.evaluate import evaluate_folder
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.runs

# Another process that has a lock.
HOLD = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"
SHORT = ["trainer.max_steps=4", "trainer.val_check_interval=2", "distillation=logits"]


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs, *SHORT]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_in(folder, inputs, "keep_checkpoints=true")
    return folder


@pytest.fixture(scope="module")
def begun(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("begun") / "run"
    with at_batch(7, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs)
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.fixture
def clean(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["head-gating", "clean", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the content of each file."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.rglob("step-*.ckpt"))


def test_checkpoints_of_every_phase_go_and_a_finished_run_still_serves(run, inputs, clean, capsys):
    phases = {path.parent.name for path in checkpoints(run)}
    assert phases == {"teacher", "search", "removed", "recovery"}
    kept = {name: text for name, text in snapshot(run).items() if not name.startswith(f"{run}/checkpoints")}
    code, out, _ = clean("--dry-run", run)
    assert code == 0
    assert "Would free" in out
    assert {path.parent.name for path in checkpoints(run)} == phases
    (run.parent / "link").symlink_to(run)
    code, out, _ = clean(run, run, run.parent / "link")
    size = json.loads(out.partition(" checkpoint(s), ")[2].partition(" MB")[0])
    assert code == 0
    assert size > 1
    assert out.endswith(f"Freed {size} MB.\n")
    assert snapshot(run) == kept
    assert not (run / "checkpoints").exists()
    assert clean(run)[:2] == (0, f"{run}: 0 checkpoint(s), 0.0 MB\nFreed 0.0 MB.\n")
    with at_batch(1, interrupt):
        run_in(run, inputs, "resume=auto")
        train.guarded_run(compose_settings([f"resume={run}"]), [f"resume={run}"])
    assert capsys.readouterr().out.count("is finished; there is nothing to resume") == 2
    assert evaluate_folder(str(run), []).numbers["num_examples"] == 16


def test_a_finished_run_keeps_no_checkpoints_and_says_how_much_remains(finished, inputs, tmp_path, capsys):
    capsys.readouterr()
    run_in(tmp_path / "run", inputs)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("The run takes ")]
    assert "MB without its checkpoints of " in line
    assert "MB, which were removed; keep_checkpoints=true keeps them." in line
    assert not (tmp_path / "run" / "checkpoints").exists()
    size = sum(path.lstat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert f"takes {size / 1e6:,.1f} MB " in line
    assert (tmp_path / "run" / "teacher" / "model.safetensors").is_file()


@pytest.mark.first
def test_a_run_that_keeps_its_checkpoints_names_the_command(inputs, tmp_path, capsys):
    place = tmp_path / "disk"
    run_in(tmp_path / "run", inputs, "keep_checkpoints=true", f"paths.checkpoints={place}", "distillation=none")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("The run takes "))
    assert line.endswith(f"MB of them checkpoints: head-gating clean {tmp_path}/run removes them.")
    assert checkpoints(place)


def test_other_files_stay(run, clean):
    mine = ["checkpoints/mine.ckpt", "checkpoints/search/best.ckpt", "checkpoints/old/step-4.ckpt", "notes.txt"]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("precious")
    assert clean(run)[0] == 0
    assert {str(path.relative_to(run)) for path in (run / "checkpoints").rglob("*") if path.is_file()} == set(mine[:3])
    assert all((run / name).read_text() == "precious" for name in mine)


def test_an_unfinished_run_keeps_its_checkpoints(begun, run, clean):
    before = snapshot(begun)
    code, out, _ = clean(begun, run)
    assert code == 0
    assert f"{begun}: not finished, so its checkpoints stay; resume it with python train.py resume={begun}" in out
    assert snapshot(begun).keys() - before.keys() <= {str(begun / ".lock")}
    assert not checkpoints(run)


@pytest.mark.parametrize("flag", [[], ["--dry-run"]])
def test_a_run_of_another_process_is_refused_and_the_others_are_cleaned(flag, run, finished, tmp_path, clean):
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    command = [sys.executable, "-c", HOLD, str(run / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        code, out, err = clean(*flag, run, other)
        process.kill()
    assert (code, err) == (1, f"error: {run} is in use by another process, so its checkpoints stay.\n")
    assert checkpoints(run)
    assert bool(checkpoints(other)) == bool(flag)
    assert out.startswith(f"{other}: ")


def test_the_finished_runs_of_a_sweep_are_cleaned(finished, begun, tmp_path, clean):
    for number, source in enumerate((finished, begun)):
        shutil.copytree(source, tmp_path / "sweep" / str(number))
    code, out, _ = clean(tmp_path / "sweep")
    assert code == 0
    assert f"{tmp_path}/sweep/1: not finished, so its checkpoints stay" in out
    assert not checkpoints(tmp_path / "sweep" / "0")
    assert checkpoints(tmp_path / "sweep" / "1")


def test_a_folder_without_runs_is_refused_before_anything_is_removed(run, tmp_path, clean):
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "nowhere", run / "compact", run / "metrics.json"):
        code, _, err = clean(run, wrong)
        assert (code, err) == (f"error: {wrong} holds no run. Give folders of runs or of sweeps.", "")
    assert checkpoints(run)
