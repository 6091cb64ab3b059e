"""The W&B log and the seconds of a run that several processes trained."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wandb

import train
from gating.report import summary
from gating.tracking.loggers import read_log
from tests.support.interruptions import Interrupted, at_batch, interrupt
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.runs

WANDB = str(Path(sys.executable).parent / "wandb")


def records_of(part: Path) -> list[dict[str, Any]]:
    """Return the records of one part of a run."""
    if wandb.__version__.startswith("0.30."):
        pytest.skip("wandb 0.30 does not print the records of a run")
    text = subprocess.check_output([WANDB, "leet", "inspect", "--json", str(part)], text=True)
    return [json.loads(line) for line in text.splitlines()]


def rows_of(parts: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the rows of all parts of a finished run, in their order."""
    # The file may be complete a moment after the run is finished.
    for _ in range(100):
        records = [records_of(part) for part in parts]
        if any(record["type"] == "exit" for record in records[-1]):
            return [record["history"]["item"] for part in records for record in part if record["type"] == "history"]
        time.sleep(0.1)
    raise AssertionError("the run has no end")


class Clock:
    """Stand-in for the module ``time`` with seconds that tests add."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.added = 0.0
        monkeypatch.setattr(summary, "time", self)

    def perf_counter(self) -> float:
        return time.perf_counter() + self.added


def run(folder: Path, inputs: list[str], *settings: str) -> None:
    """Run as the command does, which finishes the W&B run after an error, too."""
    train.guarded_run(compose_settings([*inputs, f"output_dir={folder}", "resume=auto", *settings]))


def test_a_resumed_run_has_one_wandb_run_and_the_whole_curve(inputs, tmp_path, capsys):
    settings = ["logger=wandb", "logger.mode=offline", "callbacks.checkpoint.every_n_steps=2"]
    for number in (4, 5):
        with at_batch(number, interrupt), pytest.raises(Interrupted):
            run(tmp_path / "run", inputs, *settings)
    run(tmp_path / "run", inputs, *settings)
    parts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(parts) == 3
    assert len({part.name.split("-")[3] for part in parts}) == 1
    (command,) = re.findall(r"upload wandb sync (.*)", capsys.readouterr().out.rpartition("W&B run")[2])
    assert command == " ".join(map(str, parts))
    log = [row for row in read_log(tmp_path / "run") if "train/loss" in row]
    assert [row["step"] for row in log] == list(range(12))
    # Steps after the checkpoint stand twice, with the same values.
    rows = [row for row in rows_of(parts) if "train/loss" in row]
    losses = {row["trainer/global_step"]: row["train/loss"] for row in rows}
    assert len(rows) > 12
    assert list(losses.values()) == pytest.approx([row["train/loss"] for row in log])


def test_the_seconds_of_a_run_are_those_of_all_its_processes(inputs, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    settings = ["logger=csv", "callbacks.checkpoint.every_n_steps=1", "distillation=logits"]
    # The dense model takes 6 steps, then the search and the recovery 3 each.
    for number in (3, 7, 4):
        with at_batch(number, interrupt), pytest.raises(Interrupted), slow_step(clock, number - 2):
            run(tmp_path / "run", inputs, *settings)
    run(tmp_path / "run", inputs, *settings)
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    hundreds = {name: round(numbers[f"seconds/{name}"] / 100) for name in ("dense", "search", "recovery")}
    assert hundreds == {"dense": 1, "search": 1, "recovery": 1}
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert f"{numbers['seconds/search']:,.1f}" in page


@contextmanager
def slow_step(clock: Clock, number: int) -> Iterator[None]:
    """Let the training batch with this number take a hundred seconds."""

    def wait() -> None:
        clock.added += 100

    with at_batch(number, wait):
        yield
