"""A run that compensates its removal: without training, and resumed after it."""

import json
import shutil

import pytest
import torch

import gating
from gating.run import phases
from tests.support.interruptions import Interrupted, end_of, interrupt, run_in
from tests.support.tiny_models import state_of

pytestmark = [pytest.mark.runs, pytest.mark.filterwarnings("ignore:.*positions are few for layers")]
UNTRAINED = ("experiment=untrained", "trainer.max_steps=2", "objective.num_heads=null", "objective.keep=0.5")


@pytest.mark.first
def test_a_model_gets_smaller_without_training(tiny_inputs, tmp_path, monkeypatch):
    settings = [line for line in tiny_inputs if not line.startswith(("recovery", "trainer.max_steps", "objective."))]
    run_in(tmp_path / "run", settings, *UNTRAINED)
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["macs"] < 0.8 * numbers["macs_before"]
    assert numbers["compensated/val/accuracy"] == numbers["val/accuracy"]
    assert numbers["seconds/compensate"] > 0
    before = state_of(gating.load_compact(tmp_path / "run" / "compact"))
    monkeypatch.setattr(phases, "recover", lambda run: interrupt())
    monkeypatch.setattr("gating.run.execute.recover", lambda run: interrupt())
    with pytest.raises(Interrupted):
        run_in(tmp_path / "half", settings, *UNTRAINED)
    monkeypatch.undo()
    shutil.move(tmp_path / "half", tmp_path / "moved")
    run_in(tmp_path / "moved", settings, *UNTRAINED, "resume=auto")
    after = state_of(gating.load_compact(tmp_path / "moved" / "compact"))
    assert all(torch.equal(one, after[name]) for name, one in before.items())


def test_a_search_that_trains_weights_while_units_close_is_refused(tiny_inputs, tmp_path, capsys):
    assert end_of(tmp_path / "run", tiny_inputs, "compensate=true") == 1
    assert "optimizer.freeze=search" in capsys.readouterr().err
