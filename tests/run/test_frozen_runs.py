"""Whole runs on frozen weights: their steps, their weights, and the dense model in their report."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gating.errors import InputError
from gating.models.sources import NewModel
from gating.run import stages
from gating.run.frozen import check_frozen
from gating.run.objects import build_objects
from gating.run.settings.read import read_settings
from tests.support.interruptions import at_batch, run_in
from tests.support.tiny_run import compose_settings
from train import GROUPS

pytestmark = pytest.mark.runs


def run_frozen(folder, inputs, *settings):
    """Run, and return the number of trained batches and the numbers of the run."""
    with at_batch(0, lambda: None) as steps:
        run_in(folder, inputs, *settings)
    return len(steps), json.loads((folder / "metrics.json").read_text())


@pytest.mark.first
def test_all_steps_are_the_search_and_what_stays_has_the_weights_of_the_model(inputs, tmp_path, monkeypatch, capsys):
    seen = {}
    remove = stages.remove_heads

    def remember(run, search):
        seen["weights"] = {name: one.clone() for name, one in run.state.model.state_dict().items()}
        seen["teacher"] = run.state.teacher
        seen["is_trained"] = all(one.requires_grad for one in run.state.model.parameters())
        remove(run, search)

    monkeypatch.setattr("gating.run.execute.remove_heads", remember)
    settings = ("optimizer.freeze=true", "distillation=logits", "objective=deterministic")
    num_steps, numbers = run_frozen(tmp_path / "run", inputs, *settings)
    assert num_steps == numbers["search_steps"] == 12
    assert "all 12 steps are the search" in capsys.readouterr().out
    source = next(item.partition("=")[2] for item in inputs if item.startswith("model.name="))
    for name, tensor in load_file(f"{source}/model.safetensors").items():
        assert torch.equal(seen["weights"][name], tensor), name
    assert seen["teacher"] is None
    assert seen["is_trained"]
    assert not (tmp_path / "run" / "teacher").exists()
    assert {"dense/val/accuracy", "dense/test/accuracy", "compact/val/accuracy"} <= numbers.keys()


def test_a_search_on_frozen_weights_may_have_a_recovery_of_the_weights(inputs, tmp_path):
    num_steps, numbers = run_frozen(tmp_path / "run", inputs, "optimizer.freeze=search")
    assert (num_steps, numbers["search_steps"]) == (12, 9)


def test_one_shot_ranking_of_frozen_weights(inputs, tmp_path):
    one_round = ("objective.share_per_round=1", "objective.schedule.start=0", "objective.schedule.end=1")
    settings = ("optimizer.freeze=true", "objective=fisher", "recovery=0", "trainer.max_steps=4", *one_round)
    num_steps, numbers = run_frozen(tmp_path / "run", inputs, *settings)
    assert (num_steps, numbers["search_steps"], numbers["num_heads"]) == (4, 4, 4)


def checked(inputs, *settings, num_processes=1):
    """Check the settings of a run; return them and its objects."""
    read = read_settings(compose_settings([*inputs, *settings]), groups=GROUPS)
    objects = build_objects(read)
    check_frozen(read, objects, num_processes=num_processes)
    return read, objects


def test_what_leaves_nothing_to_train_is_refused(inputs):
    dense = [item for item in inputs if not item.startswith("objective.")]
    with pytest.raises(InputError, match="trains nothing"):
        checked(dense, "objective=none", "optimizer.freeze=true")
    checked(dense, "objective=none", "optimizer.freeze=search")
    checked(dense, "objective=none", "optimizer.freeze=true", "adapters=lora")
    with pytest.raises(InputError, match=r"trainer\.devices=1"):
        checked(inputs, "objective=fisher", "optimizer.freeze=true", num_processes=2)
    checked(inputs, "objective=deterministic", "optimizer.freeze=true", num_processes=2)


def test_logits_of_the_model_itself_are_not_stored(inputs):
    settings = (*inputs, "distillation=logits", "distillation.store=true")
    for freeze in ("true", "search"):
        with pytest.raises(InputError, match=r"distillation\.store=true"):
            checked(settings, f"optimizer.freeze={freeze}")
    checked(settings, "optimizer.freeze=true", "distillation.teacher=folder")
    checked(settings)


def test_random_weights_are_not_frozen(inputs):
    settings, objects = checked(inputs, "optimizer.freeze=true")
    object.__setattr__(objects, "source", NewModel("bert", {}))
    with pytest.raises(InputError, match="random"):
        check_frozen(settings, objects, num_processes=1)
