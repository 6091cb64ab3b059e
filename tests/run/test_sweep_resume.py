"""Sweeps that a signal ended, and the same command again."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from gating.run import execute
from gating.run.sweep.jobs import jobs_of
from tests.support.interruptions import at_batch
from tests.support.sweeps import Ended, run_sweep

pytestmark = pytest.mark.processes

BUDGETS = "objective.num_heads=6,99,2"


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs[:-1], "logger=csv", "resume=auto"]


def sweep(folder: Path, inputs: list[str]) -> Ended:
    return run_sweep(folder, "sweep=heads", *inputs, BUDGETS)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    assert sweep(folder, inputs).code == 1
    return folder


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def outcome_of(folder: Path) -> dict[str, dict[str, object]]:
    """Return the numbers of each job without durations."""
    found = {}
    for path in sorted(folder.glob("*/metrics.json")):
        numbers = json.loads(path.read_text())
        timed = ("seconds", "latency", "speedup")
        found[path.parent.name] = {name: value for name, value in numbers.items() if not name.startswith(timed)}
    return found


def test_the_same_command_goes_on_in_the_interrupted_job(inputs, whole, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    # The dense job has 12 batches; the second job is stopped at its seventh.
    with at_batch(12 + 7, stop):
        end = sweep(folder, inputs)
    assert end.code == 128 + signal.SIGTERM
    assert f"Continue the sweep: the same command with output_dir={folder} resume=auto" in end.err
    assert list(outcome_of(folder)) == ["0"]
    first = (folder / "0" / "metrics.json").read_bytes()
    with at_batch(99, stop) as steps:
        end = sweep(folder, inputs)
    assert end.code == 1
    # Neither the dense job nor the first steps of the second one were trained again.
    assert len(steps) == (12 - 7) + 12
    assert (folder / "0" / "metrics.json").read_bytes() == first
    assert outcome_of(folder) == outcome_of(whole)
    assert "Recommended" in end.out or "No run is recommended" in end.out
    assert [job.reason is None for job in jobs_of(folder)] == [True, True, False, True]


def test_a_finished_sweep_is_shown_again_and_its_failed_job_is_repeated(inputs, whole, monkeypatch):
    before, begun, really = outcome_of(whole), [], execute.execute

    def begin(settings, folder, **options):
        begun.append(folder.path)
        return really(settings, folder, **options)

    monkeypatch.setattr(execute, "execute", begin)
    end = sweep(whole, inputs)
    assert end.code == 1
    assert begun == [whole / "2"]
    assert outcome_of(whole) == before
    assert end.out.count("is finished; there is nothing to resume") == 3
    assert "2 (objective.num_heads=99)" in end.err
    begun.clear()
    run_sweep(whole, "sweep=heads", *inputs, "objective.num_heads=6,5,2")
    assert begun == [whole / "2"]
