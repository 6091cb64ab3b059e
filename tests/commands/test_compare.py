"""head-gating compare: runs and sweeps in one table, and folders that cannot be compared."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from gating.run.sweep.jobs import Job
from tests.support.sweeps import write_run


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    return {
        "dense": write_run(tmp_path / "dense", "objective=none"),
        "half": write_run(tmp_path / "half", "objective.num_heads=36", num_heads=36, speedup=1.2, macs=80, val_=0.895),
        "few": write_run(tmp_path / "few", "objective.num_heads=9", num_heads=9, speedup=1.5, macs=60, val_=0.87),
    }


def test_runs_are_compared_and_one_is_recommended(compare, runs):
    out = compare(*runs.values())
    assert f"Recommended: num_heads=36, in {runs['half']}, 1.20x as fast" in out
    assert "0.50 points below the dense run's 90.00 %" in out
    assert "Recommended: num_heads=9" in compare(*runs.values(), "--max-drop", "3")


def test_a_folder_of_runs_is_expanded_and_its_unfinished_runs_are_listed(compare, runs, tmp_path):
    (runs["few"] / "metrics.json").unlink()
    plain = json.loads(compare(tmp_path, "--json"))
    assert [run["budget"] for run in plain["runs"]] == ["dense", "num_heads=36"]
    assert list(plain["failed"]) == [str(runs["few"])]


def test_runs_of_one_seed_and_copies_are_one_seed(compare, tmp_path):
    for seed, value in enumerate((0.9, 0.88)):
        write_run(tmp_path / f"d{seed}", "objective=none", f"seed={seed}", val_=value)
        write_run(tmp_path / f"r{seed}", "objective=random", "objective.num_heads=9", f"seed={seed}", val_=value)
    shutil.copytree(tmp_path / "r0", tmp_path / "copy")
    plain = json.loads(compare(tmp_path, "--json"))
    names = [(run["budget"], sorted(run["seeds"])) for run in plain["runs"]]
    assert names == [("dense", [0, 1]), ("num_heads=9", [0, 0, 1])]
    assert plain["runs"][1]["validation"] == pytest.approx(0.89)


def test_failed_jobs_and_those_whose_run_is_gone_are_listed_and_not_compared(compare, runs, tmp_path):
    (tmp_path / ".jobs").mkdir()
    for job in (Job(0, [], "dense"), Job(1, ["seed=3"], "half", "no such seed"), Job(2, ["seed=4"], "gone")):
        (tmp_path / ".jobs" / f"{job.number}.json").write_text(json.dumps(asdict(job)))
    plain = json.loads(compare(tmp_path, "--json"))
    assert [run["budget"] for run in plain["runs"]] == ["dense"]
    assert plain["failed"][f"{runs['half']} (seed=3)"] == "no such seed"
    assert f"{tmp_path}/gone (seed=4)" in plain["failed"]
