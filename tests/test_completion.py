"""Completion in bash of train.py in a checkout, and the help that mentions it."""

import os
import shlex
import subprocess

import pytest
import yaml

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


def test_the_help_names_both_commands_completion_and_launchers():
    shown = run("train.py", "--help")
    for wanted in ("head-gating train NAME=VALUE", "python train.py NAME=VALUE", "hydra/launcher=", "-m seed=0,1,2"):
        assert wanted in shown
    assert 'eval "$(python train.py -sc install=bash)"' in shown
    template = yaml.safe_load((ROOT / "conf" / "hydra" / "default.yaml").read_text())["help"]["template"]
    assert max(map(len, template.splitlines())) <= 120
