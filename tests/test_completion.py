"""Completion in bash, of the installed command and of train.py in a checkout, and the help that mentions it."""

import os
import shlex
import subprocess

import pytest
import yaml

from tests.support.tiny_run import ROOT
from tests.support.warm_python import warm_python

TYPED = [
    ("train objective=la", ["objective=lagrangian"]),
    ("train trainer.max_s", ["trainer.max_steps="]),
    ("ins", ["train", "inspect", "export"]),
]


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [*warm_python(), *command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("typed", "wanted"), TYPED, ids=[typed for typed, _ in TYPED])
def test_the_installed_command_completes_settings_and_commands(typed, wanted):
    # The script calls the first word of the line.
    shown = run("-m", "gating", "-sc", "query=bash", COMP_LINE=f"head-gating {typed}")
    assert set(wanted) <= set(shown.split())


@pytest.mark.parametrize(
    ("program", "name"),
    [(["-m", "gating", "train"], "head-gating"), (["train.py"], "python")],
    ids=["wheel", "checkout"],
)
def test_the_script_of_completion_is_one_that_bash_takes(program, name, tmp_path):
    script = run(*program, "-sc", "install=bash")
    done = subprocess.run(
        ["bash", "-c", f"eval {shlex.quote(script)}; complete -p {name}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith(f"-F hydra_bash_completion {name}"), done.stderr


def test_the_help_names_both_commands_completion_and_launchers():
    shown = run("train.py", "--help")
    for wanted in ("head-gating train NAME=VALUE", "python train.py NAME=VALUE", "hydra/launcher=", "-m seed=0,1,2"):
        assert wanted in shown
    assert 'eval "$(head-gating train -sc install=bash)"' in shown
    template = yaml.safe_load((ROOT / "conf" / "hydra" / "default.yaml").read_text())["help"]["template"]
    assert max(map(len, template.splitlines())) <= 120
