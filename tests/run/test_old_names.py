"""Names of classes in configurations and run folders of earlier versions."""

from pathlib import Path

import pytest
import yaml

import train
from gating.run.folder.old_names import with_new_names
from gating.run.settings.check import locate_target
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.tiny_run import checked_settings, compose_settings, make_inputs

# Every name in the configurations of the version before the modules were moved.
OLD = {
    "gating.lightning.adapters.LoRA": "gating.models.adapters.LoRA",
    "gating.lightning.adapters.NoAdapters": "gating.models.adapters.NoAdapters",
    "gating.lightning.checkpoints.RunCheckpoint": "gating.training.checkpoints.RunCheckpoint",
    "gating.lightning.loggers.build_loggers": "gating.tracking.loggers.build_loggers",
    "gating.lightning.models.NewModel": "gating.models.sources.NewModel",
    "gating.lightning.models.Pretrained": "gating.models.sources.Pretrained",
    "gating.lightning.optimizers.AdamW": "gating.training.optimizers.AdamW",
    "gating.lightning.sources.load_bbc_news": "gating.data.sources.load_bbc_news",
    "gating.lightning.sources.load_digits": "gating.data.sources.load_digits",
    "gating.lightning.sources.load_files": "gating.data.sources.load_files",
    "gating.lightning.sources.load_glue": "gating.data.sources.load_glue",
    "gating.lightning.sources.load_hub": "gating.data.sources.load_hub",
    "gating.lightning.sweeps.FailureReport": "gating.run.sweep.callback.SweepReport",
    "gating.lightning.tasks.CausalLM": "gating.tasks.CausalLM",
    "gating.lightning.tasks.Seq2Seq": "gating.tasks.Seq2Seq",
    "gating.lightning.tasks.SequenceClassification": "gating.tasks.SequenceClassification",
    "gating.lightning.text_files.load_text": "gating.data.text_files.load_text",
}


def with_old_names(settings: object) -> object:
    old = {new: name for name, new in OLD.items()}
    if isinstance(settings, dict):
        return {
            name: old.get(value, value) if name == "_target_" else with_old_names(value)
            for name, value in settings.items()
        }
    return settings


@pytest.mark.parametrize("old", OLD)
def test_old_names_are_those_of_today(old):
    new = with_new_names([{"a": {"_target_": old, "b": old}}])
    assert new == [{"a": {"_target_": OLD[old], "b": old}}]
    assert callable(locate_target(OLD[old], ""))


def test_other_names_stay():
    settings = {"_target_": "gating.lightningrod.x", "a": [{"_target_": "mine.load"}, 3, None]}
    assert with_new_names(settings) == settings


def test_a_configuration_with_old_names_is_read():
    settings = checked_settings(["data=files", "data.train=x.csv", "data._target_=gating.lightning.sources.load_files"])
    assert settings["data"]["_target_"] == "gating.data.sources.load_files"


@pytest.mark.parametrize("command", ["resume=FOLDER", "whole command"])
def test_a_run_of_an_earlier_version_is_resumed(command, tmp_path: Path):
    inputs = [*make_inputs(tmp_path), "trainer.max_steps=4", "trainer.val_check_interval=1"]
    folder = tmp_path / "run"
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(with_old_names(stored), sort_keys=False))
    assert "gating.lightning.tasks.SequenceClassification" in (folder / "config.yaml").read_text()
    whole = [*inputs, "logger=csv", f"output_dir={folder}", "resume=auto"]
    overrides = whole if "whole" in command else [f"resume={folder}"]
    with at_batch(99, interrupt) as steps:
        train.guarded_run(compose_settings(overrides), overrides)
    assert steps[0] > 0
    assert (folder / "metrics.json").is_file()
