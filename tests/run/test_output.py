"""Runs whose standard output or standard error is closed or full."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.tiny_run import ROOT
from tests.support.warm_python import warm_python

pytestmark = pytest.mark.processes


def run_in_shell(inputs: list[str], redirection: str, *settings: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run train.py in bash, and return its exit code rather than that of the reader of its output."""
    command = f'"$@" {redirection}; exit "${{PIPESTATUS[0]}}"'
    arguments = [*warm_python(), str(ROOT / "train.py"), *inputs, "logger=csv", "output_dir=out", *settings]
    return subprocess.run(
        ["bash", "-c", command, "bash", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


SLOW = ["2>&1 | true", ">&-", "2>&-", "<&- >&- 2>&-"]
TWO = ["trainer=ddp", "trainer.devices=2", "trainer.precision=32-true", "trainer.accelerator=cpu", "data.batch_size=4"]


@pytest.mark.parametrize(
    ("redirection", "settings"),
    [
        *((way, []) for way in ("| head -1", ">&- 2>&-", "> /dev/full 2>&1")),
        *(pytest.param(way, [], marks=pytest.mark.slow) for way in SLOW),
        pytest.param("| head -1", TWO, marks=pytest.mark.slow),
    ],
)
def test_a_run_finishes_without_its_output(redirection, settings, inputs, tmp_path):
    process = run_in_shell(inputs, redirection, *settings, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_exit_code_is_that_of_the_run(inputs, tmp_path):
    assert run_in_shell(inputs, ">&- 2>&-", "seed=-1", cwd=tmp_path).returncode == 1
