"""Settings are read once: those of a resumed run come from its folder, and mistakes are told by their dotted names."""

import shutil
from pathlib import Path

import pytest

from gating.errors import UserError
from gating.run.folder import stored_settings
from gating.run.settings import read_settings
from tests.support.resumed import change, recalled, resume
from tests.support.tiny_run import checked_settings, compose_settings

CALLBACK = "pytorch_lightning.callbacks.ModelSummary"


def test_settings_of_a_run_do_not_change(tmp_path):
    settings = read_settings(compose_settings([f"output_dir={tmp_path}/out"]))
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 5
    moved = settings.in_folder(tmp_path / "moved")
    assert moved.paths["checkpoints"] == str(tmp_path / "moved" / "checkpoints")
    assert settings.output_dir == str(tmp_path / "out")


def test_given_settings_are_on_top_of_those_of_the_folder(moved):
    stored = stored_settings(moved)
    taken = recalled(moved, "callbacks.checkpoint.keep=1", "data.num_workers=2", "+trainer.benchmark=null")
    assert taken["callbacks"]["checkpoint"] == {**stored["callbacks"]["checkpoint"], "keep": 1}
    assert taken["data"] == {**stored["data"], "num_workers": 2}
    assert taken["trainer"] == {**stored["trainer"], "benchmark": None}
    assert taken["logger"] == stored["logger"]
    assert taken["output_dir"] == str(moved)
    assert taken["paths"]["checkpoints"] == str(moved / "checkpoints")
    assert recalled(moved, "callbacks=none")["callbacks"] == {}


PLANNED = {
    "gates.units=heads": (0.0, 0.0),
    "gates.units=[heads,neurons]": (0.67, 0.33),
    "optimizer.freeze=search": (0.0, 0.25),
    "recovery_keep=best": (0.0, 0.25),
    "callbacks=early_stopping": (0.0, 0.25),
    "recovery=0.5": (0.0, 0.5),
    # Units are ranked, or a search has the rest.
    "fine_tuning=0.67": (0.67, 0.33),
    "fine_tuning=0.5 objective=importance": (0.5, 0.5),
    "fine_tuning=0.5 objective=topk": (0.5, 0.0),
    "fine_tuning=0.5 recovery=0.25": (0.5, 0.25),
    "distillation=hidden": (0.5, 0.5),
    "distillation=hidden recovery=0.6": (0.4, 0.6),
    "distillation=hidden distillation.teacher=dense": (0.0, 0.0),
    "distillation=hidden optimizer.freeze=search": (0.0, 0.25),
}


@pytest.mark.parametrize("given", PLANNED)
def test_the_plan_has_the_steps_that_its_settings_need(given):
    plan = read_settings(compose_settings(["output_dir=x", *given.split()])).plan
    assert (plan.fine_tuning, plan.recovery) == PLANNED[given]


@pytest.mark.parametrize(("total", "given", "steps"), [(10, "fine_tuning=0.67", (7, 0)), (3, "recovery=0.5", (0, 2))])
def test_steps_are_whole(total, given, steps):
    assert read_settings(compose_settings(["output_dir=x", given])).plan.steps(total) == steps


DIFFERENT = {
    "objective.num_heads=2": "has objective.num_heads=4, and this command objective.num_heads=2",
    "recovery=0.5": "has recovery=0.25, and this command recovery=0.5",
    "convergence=null": "convergence",
    "+trainer.benchmark=true": "trainer.benchmark=True",
    "trainer.limit_train_batches=1": "trainer.limit_train_batches=1",
    "objective=random": "and this command objective",
    "callbacks=early_stopping": "callbacks.early_stopping",
    "output_dir=elsewhere": "leave it out",
}


@pytest.mark.parametrize("given", DIFFERENT)
def test_a_setting_that_changes_the_results_must_be_the_same(given, moved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        recalled(moved, given)
    assert DIFFERENT[given] in str(caught.value)


EVIL = {"_target_": "os.system", "command": "touch evil"}
CODE = {
    "a shell": {"callbacks__evil": EVIL},
    "in the place of a class": {"optimizer___target_": "torch.utils.collect_env.run"},
    "deep inside": {"trainer__plugins": {"a": {"b": EVIL}}},
    "an interpolation": {"model__tokenizer": "${oc.env:HOME}"},
    "pickles": {"model__use_safetensors": False},
    "remote code": {"model__config": {"text_config": {"auto_map": {"a": "b"}}}},
}


@pytest.mark.parametrize("how", CODE)
def test_code_that_a_folder_names_must_be_named_by_the_command(how, moved):
    change(moved, **CODE[how])
    with pytest.raises(UserError, match=r"train\.py resume="):
        recalled(moved)


def test_a_module_of_ours_is_no_way_to_other_code(moved, capsys):
    change(moved, callbacks__evil={"_target_": "gating.run.folder.os.system", "command": "touch evil"})
    assert resume(moved) == 1
    assert "gating.run.folder.os.system is of posix" in capsys.readouterr().err


def test_a_class_that_the_command_names_is_trusted(moved):
    change(moved, callbacks__mine={"_target_": "mine.Callback"})
    assert recalled(moved, "++callbacks.mine._target_=mine.Callback")["callbacks"]["mine"]["_target_"]
    assert "mine" not in recalled(moved, "callbacks=default")["callbacks"]
    change(moved, callbacks__mine={"_target_": CALLBACK, "max_depth": 2})
    assert recalled(moved)["callbacks"]["mine"]["max_depth"] == 2


def test_a_secret_can_be_given_again(moved):
    change(moved, model__tokenizer="***")
    with pytest.raises(ValueError, match=r"model\.tokenizer"):
        recalled(moved)
    assert recalled(moved, "model.tokenizer=x")["model"]["tokenizer"] == "x"


@pytest.mark.parametrize(
    "text", ["", "seed: [", "- 1", "objective: null", "\x00", "a: !!python/object/apply:os.getcwd []"]
)
def test_damaged_settings_are_named(text, moved):
    (moved / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        recalled(moved)


def test_paths_are_absolute_and_follow_the_folder(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("table.tsv").write_text("text\tlabel\n")
    given = ["data=files", "data.train=table.tsv", "data.validation=[table.tsv]", "output_dir=out"]
    values = checked_settings(given)
    assert values["data"]["train"] == str(tmp_path / "table.tsv")
    assert values["data"]["validation"] == [str(tmp_path / "table.tsv")]
    assert values["output_dir"] == str(tmp_path / "out")
    copy = shutil.copytree(begun, tmp_path / "copy")
    assert stored_settings(copy)["paths"]["checkpoints"] == str(tmp_path / "copy" / "checkpoints")
