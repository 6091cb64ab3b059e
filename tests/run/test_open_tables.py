"""Settings that may be added on the command line without a ``+``."""

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import train
from gating.run.command import open_tables
from gating.run.settings.read import read_settings
from tests.support.tiers import first_of
from tests.support.tiny_run import ROOT, make_inputs, run_command


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch):
    """Return a function from the arguments of a command to the checked settings of its runs."""

    def settings_of(*arguments: str) -> list[DictConfig]:
        seen: list[DictConfig] = []

        def run(cfg: dict[str, Any]) -> None:
            read_settings(cfg, groups=train.GROUPS)
            seen.append(OmegaConf.create(cfg))

        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, getattr(sys, name))
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(train, "run", run)
        # Of jobs that write nothing.
        monkeypatch.setattr("gating.run.sweep.plugins._report", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        train.command_line()
        return seen

    return settings_of


ADDED = {
    "model.config.hidden_size=64": ("model.config.hidden_size", 64),
    "+model.config.hidden_size=64": ("model.config.hidden_size", 64),
    "++model.config.hidden_size=64": ("model.config.hidden_size", 64),
    "model.config={hidden_size: 64}": ("model.config.hidden_size", 64),
    "model.config.rope_scaling.factor=2": ("model.config.rope_scaling.factor", 2),
    "trainer.max_time=00:00:10:00": ("trainer.max_time", "00:00:10:00"),
    "trainer.benchmark=true": ("trainer.benchmark", True),
    "trainer.plugins=[a,b]": ("trainer.plugins", ["a", "b"]),
    "trainer.max_epochs=2": ("trainer.max_epochs", 2),
    "callbacks.mine={_target_: pytorch_lightning.callbacks.ModelSummary}": (
        "callbacks.mine._target_",
        "pytorch_lightning.callbacks.ModelSummary",
    ),
    "callbacks.mine._target_=pytorch_lightning.callbacks.ModelSummary": (
        "callbacks.mine._target_",
        "pytorch_lightning.callbacks.ModelSummary",
    ),
    "objective.num_heads.encoder=12": ("objective.num_heads.encoder", 12),
    "objective.keep.cross=0.5": ("objective.keep.cross", 0.5),
}


@pytest.mark.parametrize("argument", ADDED)
def test_settings_of_open_tables_need_no_plus(argument, settings_of):
    (cfg,) = settings_of(argument)
    name, value = ADDED[argument]
    assert OmegaConf.select(cfg, name) == value


def test_a_sweep_goes_over_it_too(settings_of, tmp_path):
    jobs = settings_of("-m", "model.config.hidden_size=32,64", f"output_dir={tmp_path}")
    assert [cfg.model.config.hidden_size for cfg in jobs] == [32, 64]


def test_flags_may_be_among_settings(settings_of, tmp_path):
    jobs = settings_of(
        "model.name=a", "-m", "seed=1,2", f"output_dir={tmp_path}", "--config-name", "config", "recovery=0"
    )
    assert [(cfg.model.name, cfg.seed, cfg.recovery) for cfg in jobs] == [("a", 1, 0), ("a", 2, 0)]


UNKNOWN = {
    "trainer.max_tme=00:00:10:00": "There is no setting trainer.max_tme. Did you mean trainer.max_time?",
    "data.txt_column=a": "There is no setting data.txt_column. Did you mean data.text_column?",
    "model.nme=a": "There is no setting model.nme. Did you mean model.name?",
    "callbacks.checkpoint.kep=1": "callbacks.checkpoint.kep",
    "callbacks.mine.patience=3": "callbacks.mine._target_ is missing: give the class of the callback.",
    "optimizer.lrr=1": "optimizer.lrr",
    "data.order_seed=1": "There is no setting data.order_seed.",
    "data.nonsense=null": "There is no setting data.nonsense.",
    "nonsense.lr=1": "There is no setting nonsense. There are adapters, ",
    "optimzer.lr=1": "There is no setting optimzer. Did you mean optimizer?",
    "objectiv=none": "There is no setting objectiv. Did you mean objective?",
    "objective=lagrange": "objective=lagrange: there is no such option. Did you mean lagrangian?",
    "logger=[csv,tensorbord]": "logger=tensorbord: there is no such option. Did you mean tensorboard?",
    "data=nothing": "data=nothing: there is no such option. There are ",
    "objective=l0 objective.speedup=2": "with objective=l0: leave it out, or choose one of objective=budget, ",
    "objective=l0 objective.nonsense=2": "There is no setting objective.nonsense with objective=l0. There are cost, ",
    "objective=none objective.num_heads=4": "with objective=none: leave it out, or choose one of ",
    "objective=none objective.nonsense=4": "with objective=none. There are none.",
    "objective=budget objective=l0 objective.num_heads=4": "with objective=l0: leave it out",
    "~objective objective.num_heads=4": "leave ~objective out of the command.",
    "adapters.rank=4": "with this adapters: leave it out, or choose adapters=lora.",
    "distillation.wieght=0.5": "Did you mean distillation.weight?",
    "objective.num_head=18": "There is no setting objective.num_head with this objective. Did you mean "
    "objective.num_heads?",
}


def test_settings_of_another_option_of_the_group_are_one_sentence(settings_of, capsys):
    with pytest.raises(SystemExit) as end:
        settings_of("data=files", "data.train=x.csv", "data.test_split=null")
    assert "There is no setting data.test_split." in capsys.readouterr().err + str(end.value)


@pytest.mark.parametrize("argument", first_of(UNKNOWN, every=6))
def test_unknown_settings_are_refused_in_one_sentence(argument, settings_of, capsys):
    with pytest.raises(SystemExit) as end:
        settings_of(*argument.split())
    said = capsys.readouterr().err + str(end.value)
    assert UNKNOWN[argument] in said
    assert "Traceback" not in said


@pytest.mark.processes
def test_the_nearest_name_is_suggested_for_an_unknown_model_value(tmp_path):
    inputs = make_inputs(tmp_path)
    process = run_command([*inputs, "model.config.hiden_size=64", "output_dir=out"], cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr == (
        "error: model.config.hiden_size is not a value of a bert configuration. Did you mean "
        "model.config.hidden_size?\n"
    )


def test_other_arguments_are_left_as_they_are():
    arguments = [
        "-m",
        "model=bert-base",
        "model.name=a.b=c",
        "data.train=x",
        "~model.config",
        "objective.num_heads=4",
        "trainer.max_steps=3",
        "hydra.sweep.dir=model.config.x=1",
        "seed=0",
        "--config-dir",
    ]
    assert open_tables(arguments, conf=Path(ROOT / "conf")) == arguments
