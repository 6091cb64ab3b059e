"""A trainer with gates in two processes, through accelerate."""

import shutil

import pytest
import torch

import gating
from gating.structure.layers import count_units
from tests.support.tiny_run import ROOT
from tests.support.two_processes import run_script

pytestmark = pytest.mark.processes


def start(folder, *arguments):
    command = ["--standalone", "--nproc-per-node=2", str(ROOT / "tests/support/trainer_of_ranks.py"), str(folder)]
    done = run_script("torchrun.py", [*command, *arguments], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def test_processes_leave_one_compact_model_and_resume_to_the_bit(tmp_path):
    start(tmp_path)
    whole = gating.load_compact(tmp_path / "compact")
    assert count_units(whole, "heads") == 5
    shutil.rmtree(tmp_path / "checkpoints" / "recovery" / "checkpoint-4")
    start(tmp_path, "resume")
    resumed = gating.load_compact(tmp_path / "compact").state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.state_dict().items())
