"""Completion in bash of train.py in a checkout, and the help that mentions it."""

import os
import shlex
import subprocess

import pytest

from tests.support.tiny_run import ROOT
from tests.support.warm_python import warm_python


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [*warm_python(), *command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.processes
def test_the_script_of_completion_is_one_that_bash_takes(tmp_path):
    script = run("train.py", "-sc", "install=bash")
    done = subprocess.run(
        ["bash", "-c", f"eval {shlex.quote(script)}; complete -p python"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("-F hydra_bash_completion python"), done.stderr
