"""Runs of two processes, on CPUs, through gloo."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.support.outcome import Outcome
from tests.support.steps_of_ranks import train_some_steps
from tests.support.tiny_run import make_model_folder
from tests.support.two_processes import TWO, run_script

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def finished(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    where = tmp_path_factory.mktemp("ranks")
    return where, run_script("command_of_ranks.py", [*inputs, *TWO], cwd=where)


@pytest.mark.first
def test_a_run_on_two_devices_finishes_and_prints_everything_once(finished):
    _, process = finished
    assert process.returncode == 0, process.stderr
    # torch 2.8 has an enumeration of which newer releases of Python 3.13 warn.
    assert re.sub(r".*FutureWarning: functools\.partial .*\n.*\n", "", process.stderr) == ""
    for line in ("12 heads, 12 steps in", "search step 4/9", "Everything is in", "wandb sync"):
        assert process.stdout.count(line) == 1, line


@pytest.mark.first
def test_both_processes_keep_the_same_heads(finished):
    where, _ = finished
    first, second = (json.loads((where / f"kept-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert sum(map(len, first[0].values())) == 4


@pytest.mark.first
def test_only_one_folder_is_written(finished):
    where, _ = finished
    assert len(list((where / "outputs").glob("*/*"))) == 1  # named after the time at which rank 0 started
    folder = next((where / "outputs").glob("*/*"))
    assert {path.name for path in where.iterdir()} == {"outputs", "kept-0.json", "kept-1.json"}
    assert len(list(folder.rglob("model.safetensors"))) == 1
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["num_heads"] == 4
    assert 16 * numbers["test/accuracy"] % 1 == 0


ENDS = {
    # Rank, batch and event: exit code and message.
    "1 7 SIGKILL": (1, "Another process of this run has ended: rank 1 was killed by SIGKILL"),
    "0 7 fails": (1, "this process was told to fail"),
    "1 7 fails": (1, "this process was told to fail"),
    "0 7 SIGTERM": (143, "Stopped by SIGTERM"),
    "1 7 SIGTERM": (143, "Stopped by SIGTERM"),
    "1 7 nan": (1, "The loss is not a number at step 7 of the run"),
}
IN_CI = ("1 7 SIGKILL",)


@pytest.mark.parametrize("happens", [pytest.param(x, marks=() if x in IN_CI else pytest.mark.slow) for x in ENDS])
def test_the_failure_of_one_process_ends_the_run_which_can_be_resumed(happens, finished, inputs, tmp_path):
    code, message = ENDS[happens]
    start = time.monotonic()
    settings = [*inputs, *TWO, "logger=csv", "callbacks.checkpoint.every_n_steps=1", "output_dir=run", "resume=auto"]
    process = run_script("command_of_ranks.py", settings, cwd=tmp_path, HAPPENS=happens)
    assert process.returncode == code
    assert message in process.stderr
    assert process.stderr.count("Resume the run: python train.py resume=") == ("nan" not in happens)
    assert ("Traceback" in process.stderr) == ("fails" in happens)
    assert time.monotonic() - start < 150
    folder = tmp_path / "run"
    assert not (folder / "compact").exists()
    assert len(list((folder / "checkpoints" / "search").glob("*.ckpt"))) == 2
    process = run_script("command_of_ranks.py", settings, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("search resumes from") == 1
    whole = next((finished[0] / "outputs").glob("*/*"))
    comparison = Outcome.of(whole).compare(Outcome.of(folder))
    assert all(comparison.values()), comparison


def test_two_processes_take_the_same_steps_as_one_with_twice_the_batch_size(tmp_path):
    folder = make_model_folder(tmp_path / "model")
    process = run_script("steps_of_ranks.py", [str(folder), str(tmp_path)], cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    two = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1)]
    one = train_some_steps(folder, num_processes=1, batch_size=8)
    assert len(one["losses"]) == len(two[0]["losses"]) == 3
    # Sums in another order differ in float32, and Adam's division amplifies the difference.
    for step, loss in enumerate(one["losses"]):
        assert (two[0]["losses"][step] + two[1]["losses"][step]) / 2 == pytest.approx(float(loss), abs=1e-5)
        for name, gradient in one["gradients"][step].items():
            torch.testing.assert_close(two[0]["gradients"][step][name], gradient, atol=1e-6, rtol=1e-3)
            assert torch.equal(two[0]["gradients"][step][name], two[1]["gradients"][step][name])
    assert one["gradients"][0]["model.head_gates.log_alpha"].abs().max() > 1e-4
    assert two[0]["metrics"] == two[1]["metrics"]
    assert two[0]["metrics"]["val/accuracy"] == one["metrics"]["val/accuracy"]
    assert two[0]["metrics"]["val/loss"] == pytest.approx(one["metrics"]["val/loss"], abs=1e-5)
