"""Whole runs on frozen weights: their steps, their weights, and the dense model in their report."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import gating
from gating.errors import InputError
from gating.models.adapters import LoRA, NoAdapters
from gating.models.sources import Pretrained
from gating.run import exports, phases
from gating.run.build import build_objects
from gating.run.prepare import check_dtype
from gating.run.settings import read_settings
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.tiny_models import assert_same_state, state_of
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.runs


def run_frozen(folder, inputs, *settings):
    """Run, and return the number of trained batches and the numbers of the run."""
    with at_batch(0, lambda: None) as steps:
        run_in(folder, inputs, *settings)
    return len(steps), json.loads((folder / "metrics.json").read_text())


@pytest.mark.first
def test_all_steps_are_the_search_and_what_stays_has_the_weights_of_the_model(inputs, tmp_path, monkeypatch, capsys):
    seen = {}
    remove = phases.remove

    def remember(run):
        seen["weights"] = {name: one.clone() for name, one in run.state.model.state_dict().items()}
        seen["teacher"] = run.state.teacher
        seen["is_trained"] = all(one.requires_grad for one in run.state.model.parameters())
        remove(run)

    monkeypatch.setattr("gating.run.execute.remove", remember)
    settings = ("optimizer.freeze=true", "distillation=logits", "objective=deterministic")
    num_steps, numbers = run_frozen(tmp_path / "run", inputs, *settings)
    assert num_steps == numbers["search_steps"] == 12
    printed = capsys.readouterr().out
    assert "all 12 steps are the search" in printed
    assert f"is in {tmp_path / 'run' / 'recipe'}\n" in printed
    loaded = gating.load_compact(tmp_path / "run" / "recipe")
    assert_same_state(loaded, state_of(gating.load_compact(tmp_path / "run" / "compact")))
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
    assert not (tmp_path / "run" / "recipe").exists()


def test_one_shot_ranking_of_frozen_weights(inputs, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise InputError("Weights were trained. Save them.")

    monkeypatch.setattr(exports, "save_recipe", refuse)
    one_round = ("objective.share_per_round=1", "objective.schedule.start=0", "objective.schedule.end=1")
    settings = ("optimizer.freeze=true", "objective=fisher", "recovery=0", "trainer.max_steps=4", *one_round)
    num_steps, numbers = run_frozen(tmp_path / "run", inputs, *settings)
    assert (num_steps, numbers["search_steps"], numbers["num_heads"]) == (4, 4, 4)
    assert "No recipe is written beside the compact model: Weights were trained. Save them." in capsys.readouterr().out
    assert not (tmp_path / "run" / "recipe").exists()


def test_a_resumed_run_renames_its_earlier_recipe(inputs, tmp_path, monkeypatch):
    folder, frozen = tmp_path / "run", ("optimizer.freeze=true", "objective=deterministic")
    with monkeypatch.context() as patch:
        patch.setattr("gating.run.execute.report", lambda *_: interrupt())
        with pytest.raises(Interrupted):
            run_in(folder, inputs, *frozen)
    assert (folder / "recipe" / "recipe.json").is_file()
    run_in(folder, inputs, *frozen, "resume=auto")
    loaded = gating.load_compact(folder / "recipe")
    assert_same_state(loaded, state_of(gating.load_compact(folder / "compact")))
    assert (folder / "recipe.1" / "recipe.json").is_file()


@pytest.mark.parametrize(
    ("source", "adapters", "has_room", "reason"),
    [
        (Pretrained("package://some_package/model"), NoAdapters(), True, "package://some_package/model is no folder"),
        (Pretrained("user/name"), LoRA(), True, "adapters were trained"),
        (Pretrained("user/name"), NoAdapters(), False, "the memory has no room"),
    ],
)
def test_runs_without_a_recipe_say_why(source, adapters, has_room, reason, tmp_path, capsys):
    objects = SimpleNamespace(source=source, adapters=adapters)
    settings = SimpleNamespace(freezes=lambda _: True)
    folder = SimpleNamespace(path=tmp_path)
    run = SimpleNamespace(objects=objects, settings=settings, recovery_steps=0, folder=folder)
    exports.write_recipe(run, has_room=has_room)
    assert f"No recipe is written beside the compact model: {reason}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def checked(inputs, *settings):
    """Check the settings of a run; return them and its objects."""
    read = read_settings(compose_settings([*inputs, *settings]))
    objects = build_objects(read)
    check_dtype(read, objects)
    return read, objects


@pytest.mark.parametrize("extra", [["optimizer.freeze=true"], ["adapters=lora", "optimizer.freeze=true"]])
def test_frozen_weights_may_be_in_half_precision(extra, inputs, tmp_path):
    with at_batch(0, lambda: None):
        run_in(tmp_path / "run", inputs, *extra, "model.dtype=bfloat16", "objective=deterministic")
    compact = gating.load_compact(tmp_path / "run" / "compact")
    assert compact.dtype == torch.bfloat16


def test_trained_weights_may_not_be_in_half_precision(inputs):
    for extra in ([], ["optimizer.freeze=search"]):
        with pytest.raises(InputError, match="loses the small steps"):
            checked(inputs, "model.dtype=bfloat16", *extra)
    with pytest.raises(InputError, match="float32"):
        checked(inputs, "model.dtype=int8", "optimizer.freeze=true")
