"""The start of commands: help and wrong names are answered before torch is imported."""

import os
import subprocess
import sys

import pytest
import yaml

import gating
from tests.support.tiny_run import ROOT

# Exits with code 9 where a command has imported torch.
ENDED_WITHOUT_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    if sys.argv[0] == "train.py":
        runpy.run_path("train.py", run_name="__main__")
    else:
        runpy.run_module("gating", run_name="__main__", alter_sys=True)
except SystemExit as end:
    if "torch" in sys.modules:
        sys.exit(9)
    raise
sys.exit(9 if "torch" in sys.modules else 0)
"""
ANSWERED = {
    "train.py --help": "gate on every attention head",
    "train.py --cfg job objective.num_heads=7": "num_heads: 7",
    "gating --version": gating.__version__,
    "gating --help": "recommend the fastest",
    "gating export --help": "llama.cpp",
    "gating compare --help": "--max-drop",
    "gating train --help": "gate on every attention head",
}
# Hydra's words for names, ours for values, files and folders.
REFUSED = {
    "gating compair": "invalid choice",
    "train.py objektive=budget": "objektive",
    "train.py objective=budgets": "budgets",
    "train.py objective.num_head=18": "+objective.num_head=18",
    "train.py +overwrit=true": "There is no setting overwrit.",
    "train.py seed=-1": "seed=-1",
    "train.py output_dir=tests": "output_dir=",
    "train.py resume=nowhere": "no run in",
    "gating train sweep=heads": "add -m",
    "train.py objective.num_heads=12,24": "add -m",
    "train.py --num_heads 18": "NAME=VALUE",
    "train.py optimizer.lr 3e-4": "NAME=VALUE",
    "train.py num_heads=18": "Did you mean objective.num_heads?",
    "train.py data.train=x.csv": "setting of data=files or",
}


def ended(command: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", ENDED_WITHOUT_TORCH, *command.split()]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.processes
@pytest.mark.parametrize("command", ANSWERED)
def test_help_is_shown_without_torch(command):
    end = ended(command)
    assert end.returncode == 0, end.stderr
    assert ANSWERED[command] in end.stdout


@pytest.mark.processes
@pytest.mark.parametrize("command", REFUSED)
def test_mistakes_are_told_without_torch(command):
    end = ended(command)
    assert end.returncode in (1, 2), end.stderr
    assert REFUSED[command] in end.stderr
    assert "Traceback" not in end.stderr


def test_all_public_names_are_imported_at_first_use():
    assert {"ExactBudget", "finalize", "load_compact"} <= set(gating.__all__)
    for name in gating.__all__:
        assert getattr(gating, name) is not None


@pytest.mark.processes
@pytest.mark.parametrize(
    ("program", "given", "wanted"),
    [
        (["train.py"], {}, {"GOMP_SPINCOUNT": "1000"}),
        (["-m", "gating", "train"], {}, {"GOMP_SPINCOUNT": "1000"}),
        (["train.py"], {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (["train.py"], {"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
    ],
)
def test_waiting_threads_sleep_unless_the_user_has_chosen(program, given, wanted):
    """The environment of a command is that of the processes and jobs that it starts."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    shown = f"{{{', '.join(f'{name}: ${{oc.env:{name},null}}' for name in names)}}}"
    command = [sys.executable, *program, "--cfg", "job", "--resolve", f"+shown={shown}"]
    kept = {name: value for name, value in os.environ.items() if name not in names}
    ended = subprocess.run(command, cwd=ROOT, env=kept | given, capture_output=True, text=True, check=True)
    assert yaml.safe_load(ended.stdout)["shown"] == dict.fromkeys(names) | wanted
