"""Sweeps of the configuration: a dense job first, a failing one, and the decision at the end."""

import json
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from gating.run.build import build_objects
from gating.run.settings import read_settings
from gating.run.sweep import choice, results
from gating.run.sweep.jobs import Job, begin_sweep
from gating.run.sweep.plugins import DenseFirst, SweepReport
from tests.support.outcome import snapshot
from tests.support.sweeps import Ended, run_sweep, write_run
from tests.support.tiers import first_of


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    # Without the budget of the tiny run.
    return [*inputs[:-1], "logger=csv"]


@pytest.fixture(scope="module")
def swept(inputs, tmp_path_factory) -> tuple[Path, Ended]:
    """A sweep of four jobs, of which one fails."""
    folder = tmp_path_factory.mktemp("sweep") / "heads"
    return folder, run_sweep(folder, "sweep=heads", *inputs, "objective.num_heads=6,99,2", "sweep.max_drop=100")


def test_the_dense_job_is_first_and_a_failed_job_does_not_prevent_the_decision(swept):
    folder, end = swept
    assert end.code == 1
    assert [(folder / str(job) / "metrics.json").exists() for job in range(4)] == [True, True, False, True]
    numbers = json.loads((folder / "report" / "tradeoff.json").read_text())
    assert {run["budget"] for run in numbers["runs"]} == {"dense", "num_heads=6", "num_heads=2"}
    (dense,) = [run for run in numbers["runs"] if run["dense"]]
    assert dense["folders"] == [str(folder / "0")]
    assert dense["num_heads"] == 12
    assert (folder / "report" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    reason = "num_heads=99 cannot be kept: this model has 12 heads, so give an integer from 1 to 12."
    assert numbers["failed"] == {f"{folder}/2 (objective.num_heads=99)": reason}


def split_jobs(*lines: str) -> list[list[str]]:
    (jobs,) = DenseFirst.split_arguments(OverridesParser.create().parse_overrides(list(lines)), None)
    return jobs


def test_each_seed_and_model_has_one_dense_job():
    jobs = split_jobs("objective.keep=0.5,0.2", "gates.units=heads,neurons", "seed=0,1", "objective.schedule.end=0.5")
    assert jobs[:2] == [["seed=0", "objective=none"], ["seed=1", "objective=none"]]
    assert len(jobs) == 2 + 8
    assert all("objective.schedule.end=0.5" in job for job in jobs[2:])


SWEEPS = {
    "heads": ["heads"] * 4,
    "speedup": [["heads", "neurons"]] * 4,
    "units": ["heads", "heads", "neurons", "neurons", ["heads", "neurons"], ["heads", "neurons"]],
    "reference": ["heads"],
}


@pytest.mark.runs
@pytest.mark.parametrize("sweep", first_of(SWEEPS))
def test_each_job_of_each_sweep_has_settings_that_fit(sweep, monkeypatch, tmp_path, inputs):
    units = []

    def begin(cfg, *_, **__):
        objects = build_objects(read_settings(cfg))
        units.append(objects.make_gates.keywords["units"] if objects.objective else None)

    monkeypatch.setattr("train.run", begin)
    run_sweep(tmp_path / "sweep", f"sweep={sweep}", *inputs, "seed=1")
    assert units == [None, *SWEEPS[sweep]]


@pytest.mark.runs
def test_a_budget_of_the_command_replaces_that_of_the_sweep(monkeypatch, tmp_path, inputs):
    begun = []
    monkeypatch.setattr("train.run", lambda cfg, *_, **__: begun.append(cfg["objective"]))
    run_sweep(tmp_path / "sweep", "sweep=speedup", *inputs, "objective.num_heads=3,4")
    assert [objective.get("num_heads") for objective in begun] == [None, 3, 4]
    assert all(objective.get("speedup") is None for objective in begun)


def test_the_jobs_of_a_sweep_are_not_replaced_by_those_of_another(inputs, swept):
    folder, _ = swept
    before = snapshot(folder)
    end = run_sweep(folder, "sweep=heads", *inputs, "objective.num_heads=5")
    assert "holds a sweep" in str(end.code)
    assert snapshot(folder) == before


def end_of(folder: Path, jobs: list[Job], *, capsys, sweeper: str = "basic") -> tuple[int | str | None, str, str]:
    """End a sweep of jobs that were not run; return its exit code and output."""
    begin_sweep(folder, swept=[], goes_on=True)
    for job in jobs:
        (folder / ".jobs" / f"{job.number}.json").write_text(json.dumps(asdict(job)))
    hydra = {"sweep": {"dir": str(folder)}, "sweeper": {"_target_": sweeper}}
    config = OmegaConf.create({"hydra": hydra, "sweep": {"max_drop": 1.0}})
    capsys.readouterr()
    code: int | str | None = 0
    try:
        SweepReport().on_multirun_end(config)
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.fixture
def runs(tmp_path) -> Path:
    """A folder with a dense run and one with half the heads."""
    write_run(tmp_path / "0", "objective=none")
    write_run(tmp_path / "1", "objective.num_heads=36", speedup=1.2, val_=0.895)
    return tmp_path


JOBS = [Job(0, ["objective=none"], "0"), Job(1, ["objective.num_heads=36"], "1")]
FAILED = Job(2, ["seed=-1"], "2", "no such seed")


def test_a_sweep_without_failures_ends_in_exit_code_0(runs, capsys):
    code, out, err = end_of(runs, JOBS, capsys=capsys)
    assert (code, err) == (0, "")
    assert "Recommended: num_heads=36" in out


@pytest.mark.parametrize(
    ("module", "part"),
    [(choice, "write_picture"), (choice, "as_json"), (choice, "print_choice"), (results, "read_runs")],
)
@pytest.mark.parametrize("error", first_of([OSError(28, "No space left on device", "x"), ValueError("odd")]))
def test_a_report_that_fails_is_listed_with_the_failed_jobs(module, part, error, runs, monkeypatch, capsys):
    monkeypatch.setattr(module, part, mock.Mock(side_effect=error))
    code, out, err = end_of(runs, [*JOBS, FAILED], capsys=capsys)
    assert code == 1
    assert "  the report: " in err
    assert ("no such seed" in err) == (part != "read_runs")
    assert ("Recommended: num_heads=36" in out) == (part in ("write_picture", "as_json"))


@pytest.mark.parametrize("content", first_of(["", "[]", "{", "null", None]))
def test_jobs_that_did_not_finish_or_are_damaged_or_gone_are_failed_ones(content, runs, capsys):
    path = runs / "1" / "metrics.json"
    path.unlink() if content is None else path.write_text(content)
    code, out, err = end_of(runs, [*JOBS, Job(2, ["seed=1"], "2")], capsys=capsys)
    assert code == 1
    assert "1.00x" in out
    assert f"  {runs}/1 (objective.num_heads=36): " in err
    assert f"  {runs}/2 (seed=1): " in err


def test_a_search_ends_with_its_best_trial_and_its_folder(runs, capsys):
    best = {"best_params": {"objective.num_heads": 36}, "best_value": 0.895}
    (runs / "optimization_results.yaml").write_text(json.dumps(best))
    code, out, _ = end_of(runs, JOBS[1:], capsys=capsys, sweeper="hydra_plugins.optuna")
    assert code == 0
    assert f"Best trial: objective.num_heads=36 with 0.895, in {runs / '1'}." in out
    assert "recommended" not in out
