"""The start of commands: help and wrong names are answered before torch is imported."""

import os
import subprocess
import sys
from inspect import signature

import pytest
import pytorch_lightning
import torch
import yaml

import gating
from gating.data.sources import load_files
from gating.models.sources import Pretrained
from gating.run.settings.misspelled import parameters_of
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
REFUSED = {
    "gating compair": "invalid choice",
    "train.py objektive=budget": "Did you mean objective?",
    "train.py objective.num_head=18": "Did you mean objective.num_heads?",
    "train.py objective.schedule.ends=0.5": "Did you mean objective.schedule.end?",
    "train.py trainer.max_epoch=3": "Did you mean trainer.max_epochs?",
    "train.py data=files data.train=x data.lenght=3": "Did you mean data.max_length?",
    "train.py model.nam=x": "Did you mean model.name?",
    "train.py optimizer._target_=torch.optim.NAdam optimizer.momentum_deca=1": "Did you mean optimizer.momentum_decay?",
    "gating train scheduler.warmpu=0.1": "Did you mean scheduler.warmup?",
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
def test_wrong_names_are_refused_without_torch(command):
    end = ended(command)
    assert end.returncode in (1, 2), end.stderr
    assert REFUSED[command] in end.stderr
    assert "Traceback" not in end.stderr


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("pytorch_lightning.Trainer", pytorch_lightning.Trainer),
        ("torch.optim.SGD", torch.optim.SGD),
        ("gating.data.sources.load_files", load_files),
        ("gating.models.sources.Pretrained", Pretrained),
        ("gating.ExactBudget", gating.ExactBudget),
    ],
)
def test_parameters_are_read_from_source_files(name, made):
    assert parameters_of(name) == signature(made).parameters.keys()


@pytest.mark.parametrize(
    "name", ["nowhere.Nothing", "gating.nothing", "torch.nothing.Nothing", "Nothing", "json.loads"]
)
def test_what_cannot_be_read_is_left_to_the_full_check(name):
    assert parameters_of(name) is None


def test_all_public_names_are_imported_at_first_use():
    assert {"ExactBudget", "finalize", "load_compact"} <= set(gating.__all__)
    for name in gating.__all__:
        assert getattr(gating, name) is not None


@pytest.mark.processes
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
    ],
)
@pytest.mark.parametrize("program", [["train.py"], ["-m", "gating", "train"]])
def test_waiting_threads_sleep_unless_the_user_has_chosen(program, given, wanted):
    """The environment of a command is that of the processes and jobs that it starts."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    shown = f"{{{', '.join(f'{name}: ${{oc.env:{name},null}}' for name in names)}}}"
    command = [sys.executable, *program, "--cfg", "job", "--resolve", f"+shown={shown}"]
    kept = {name: value for name, value in os.environ.items() if name not in names}
    ended = subprocess.run(command, cwd=ROOT, env=kept | given, capture_output=True, text=True, check=True)
    assert yaml.safe_load(ended.stdout)["shown"] == dict.fromkeys(names) | wanted
