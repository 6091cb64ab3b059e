"""Death of one process while another one waits for it."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.two_processes import ROOT, SUPPORT, TWO, run_script
from tests.support.warm_python import warm_python


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs, *TWO, "logger=csv", "callbacks.checkpoint.every_n_steps=1"]


@pytest.mark.processes
def test_a_process_that_hangs_after_the_death_of_another_ends_with_a_message(inputs, tmp_path):
    settings = [*inputs, "output_dir=out"]
    process = run_script("command_of_ranks.py", settings, cwd=tmp_path, HAPPENS="1 7 SIGKILL", HANGS="0 7")
    assert process.returncode == 1
    assert "rank 1 was killed by SIGKILL" in process.stderr
    assert process.stderr.count(f"Resume the run: python train.py resume={tmp_path}/out\n") == 1
    assert "Traceback" not in process.stderr


@pytest.mark.processes
@pytest.mark.parametrize("hangs", ["- -", "1 7"])
def test_other_ranks_report_the_death_of_rank_zero_and_end(hangs, inputs, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HAPPENS": "0 7 SIGKILL", "HANGS": hangs}
    with Path(tmp_path / "err").open("wb") as err:
        command = [*warm_python(), str(SUPPORT / "command_of_ranks.py"), *inputs, "output_dir=out"]
        process = subprocess.run(command, cwd=tmp_path, env=environment, stdout=err, stderr=err, check=False)
    assert process.returncode == -9
    end = time.monotonic() + 60
    while "Resume the run" not in (said := Path(tmp_path / "err").read_text()) and time.monotonic() < end:
        time.sleep(0.2)
    assert "Another process of this run has ended: rank 0 was killed" in said
    assert said.count(f"Resume the run: python train.py resume={tmp_path}/out\n") == 1
    while _processes_of(tmp_path) and time.monotonic() < end:
        time.sleep(0.2)
    assert _processes_of(tmp_path) == []


def _processes_of(folder: Path) -> list[str]:
    """Return the command lines of the processes in this working directory."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == folder:
                found.append(re.sub("\0", " ", (link.parent / "cmdline").read_text()))
        except OSError:
            continue
    return found
