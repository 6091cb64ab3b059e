"""The timings of runs: what is measured, and how long that takes."""

import json
import re

import pytest
import torch

import train
from gating.pruning import latency
from tests.support.interruptions import run_in
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.runs

BOTH = ("objective.num_heads=null", "gates.units=[heads,neurons]", "gates.group_size=8")


def numbers_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_timed_batches_and_their_errors_are_in_the_results(inputs, tmp_path, capsys):
    run_in(tmp_path / "run", inputs, "latency.length=median", "latency.batch_size=3")
    numbers, out = numbers_of(tmp_path / "run"), capsys.readouterr().out
    words = [numbers[f"latency_words{end}"] for end in ("", "_short")]
    assert re.fullmatch(r"3 x \d tokens, median", words[0])
    assert re.fullmatch(r"1 x \d tokens, median", words[1])
    assert [f"{numbers[name]} tokens, median" for name in ("latency_batch", "latency_batch_short")] == words
    for end in ("", "_short"):
        assert numbers[f"latency_ms{end}"] > 0 < numbers[f"latency_ms{end}_before"]
        assert numbers[f"speedup{end}"] > 0 <= numbers[f"speedup{end}_error"]
    report = (tmp_path / "run" / "report" / "index.html").read_text()
    card = (tmp_path / "run" / "compact" / "README.md").read_text()
    for text in (report, card):
        assert all(each in text for each in words)
    assert "±" in out


@pytest.fixture
def slow(monkeypatch):
    """Let a pass take a second for each thousand parameters and example, on a clock that only passes advance."""
    clock, taken = [0.0], []

    def timed(model, batch):
        taken.append(sum(parameter.numel() for parameter in model.parameters()) / 1000 * len(batch["input_ids"]))
        clock[0] += taken[-1]
        return taken[-1]

    monkeypatch.setattr(latency, "time_pass", timed)
    monkeypatch.setattr("gating.pruning.latency.time.perf_counter", lambda: clock[0])
    return clock, taken


@pytest.mark.parametrize("speedup", ["objective.speedup=1.05", "objective.cost=latency objective.keep=0.9"])
def test_all_timings_of_a_run_together_are_bounded(inputs, tmp_path, capsys, slow, speedup):
    clock, taken = slow
    run_in(tmp_path / "run", inputs, *BOTH, *speedup.split(), "latency.max_seconds=100")
    numbers, out = numbers_of(tmp_path / "run"), capsys.readouterr().out
    # Timed in any case: the first row, the dense model in each of three stages, five copies, a choice, and the end.
    assert clock[0] <= 100 + 11 * max(taken)
    assert "Forward passes of 8 x" in out
    assert numbers["latency_batch"].startswith("1 x ")
    assert "± unknown" in out
    assert numbers["speedup_error"] is None


def test_timings_of_a_fast_model_end_before_their_time(inputs, tmp_path, monkeypatch, capsys):
    clock = [0.0]

    def timed(model, batch):
        seconds = sum(parameter.numel() for parameter in model.parameters()) / 1e7 * len(batch["input_ids"])
        clock[0] += seconds
        return seconds

    monkeypatch.setattr(latency, "time_pass", timed)
    monkeypatch.setattr("gating.pruning.latency.time.perf_counter", lambda: clock[0])
    run_in(tmp_path / "run", inputs, *BOTH, "objective.speedup=1.1", "latency.max_seconds=100")
    assert clock[0] < 60
    numbers = numbers_of(tmp_path / "run")
    assert numbers["latency_batch"].startswith("8 x ")
    assert numbers["speedup_error"] < 0.001
    assert "± unknown" not in capsys.readouterr().out


def test_a_resume_may_have_another_time(half, inputs):
    train.run(compose_settings([*inputs, "logger=csv", f"output_dir={half}", "resume=auto", "latency.max_seconds=2"]))
    assert numbers_of(half)["speedup"] > 0
    assert torch.is_grad_enabled()
