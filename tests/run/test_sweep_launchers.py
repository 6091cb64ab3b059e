"""Launchers and sweepers of the extra `sweep`, the example of a W&B sweep, and names of jobs in W&B."""

import json

import pytest
import yaml

from gating.run.sweep.jobs import jobs_of
from tests.support.sweeps import run_sweep
from tests.support.tiny_run import ROOT, checked_settings, compose_settings, run_command


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    short = ["trainer.max_steps=4", "trainer.val_check_interval=2", "logger=csv"]
    return [*inputs[:-1], *short]


LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
}


@pytest.mark.processes
@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit", marks=pytest.mark.slow)])
def test_jobs_of_other_processes_are_decided_upon(launcher, inputs, tmp_path, monkeypatch):
    command = ["-m", "sweep=reference", *LAUNCHERS[launcher], *inputs, "objective.num_heads=3,99", "output_dir=sweep"]
    process = run_command(command, cwd=tmp_path)
    assert process.returncode == 1, process.stderr
    assert "  sweep/2 (objective.num_heads=99): num_heads=99 cannot be kept" in process.stderr
    numbers = json.loads((tmp_path / "sweep" / "report" / "tradeoff.json").read_text())
    assert {run["budget"]: run["folders"] for run in numbers["runs"]} == {
        "dense": ["sweep/0"],
        "num_heads=3": ["sweep/1"],
    }
    assert all(line in process.stdout for line in numbers["conclusion"])


@pytest.mark.processes
def test_optuna_searches_with_the_validation_score(inputs, tmp_path):
    space = ["optimizer.gate_lr=interval(0.05,0.3)", "objective.num_heads=4", "hydra.sweeper.n_trials=2"]
    command = ["-m", "hparams_search=optuna", *inputs, *space, "output_dir=sweep", "resume=auto"]
    process = run_command(command, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    scores = [json.loads(path.read_text())["val/accuracy"] for path in (tmp_path / "sweep").glob("*/metrics.json")]
    assert len(scores) == 2
    assert best["best_value"] == max(scores)
    found = (
        f"Best trial: optimizer.gate_lr={best['best_params']['optimizer.gate_lr']} with {best['best_value']}, in sweep/"
    )
    assert found in process.stdout.replace(f"{tmp_path}/", "")
    assert "there is no dense run" not in process.stdout
    numbers = json.loads((tmp_path / "sweep" / "report" / "tradeoff.json").read_text())
    assert all("optimizer.gate_lr=0." in run["budget"] for run in numbers["runs"])
    process = run_command(command, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("there is nothing to resume") == 2


def test_the_search_space_of_optuna_has_settings_that_exist():
    composed = compose_settings(["hparams_search=optuna"])
    assert "hydra" not in composed
    params = yaml.safe_load((ROOT / "conf" / "hparams_search" / "optuna.yaml").read_text())["hydra"]["sweeper"][
        "params"
    ]
    checked_settings([f"{name}=0.1" for name in params])


def test_the_parameters_of_the_wandb_sweep_are_settings_that_exist():
    sweep = yaml.safe_load((ROOT / "examples" / "wandb_sweep.yaml").read_text())
    assert (ROOT / sweep["program"]).is_file()
    for chosen in (min, max):
        values = {
            name: chosen(space["values"]) if "values" in space else space[chosen.__name__]
            for name, space in sweep["parameters"].items()
        }
        overrides = [line for line in sweep["command"] if "=" in line]
        settings = checked_settings([*overrides, *(f"{name}={value}" for name, value in values.items())])
        assert settings["objective"]["num_heads"] == values["objective.num_heads"]
        assert settings["logger"]["mode"] == "online"
    assert sweep["command"][-1] == "${args_no_hyphens}"
    assert sweep["metric"]["name"].startswith("val/")


@pytest.mark.processes
def test_jobs_of_a_sweep_have_their_names_in_their_settings(inputs, tmp_path):
    loggers = ["logger=wandb", "logger.mode=disabled"]
    end = run_sweep(tmp_path / "sweep", *inputs, *loggers, "objective.num_heads=3", "seed=0,1")
    assert end.code == 0, end.err
    for job in jobs_of(tmp_path / "sweep"):
        logger = yaml.safe_load((tmp_path / "sweep" / job.folder / "config.yaml").read_text())["logger"]
        assert (logger["name"], logger["group"], logger["job_type"]) == (f"seed={job.number}", "sweep", "search")
