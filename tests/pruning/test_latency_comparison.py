"""Latency of a model compared with another one's, in turns and within a time."""

import copy

import pytest
import torch
from torch import nn

import gating
from gating.pruning import latency
from tests.support.timers import Slow, compare
from tests.support.tiny_models import batch_for


@pytest.fixture
def clock(monkeypatch):
    """A fake clock that only forward passes advance."""
    now = [0.0]
    monkeypatch.setattr("gating.pruning.latency.time.perf_counter", lambda: now[0])
    return now


def test_latency_is_the_median(clock):
    before, after = Slow(clock, 0.3), Slow(clock, 0.1)
    found = compare(before, after, {"x": torch.ones(2, 5)}, repeats=5)
    assert found.before == pytest.approx(0.3)
    assert found.after == pytest.approx(0.1)
    assert found.speedup == pytest.approx(3.0)
    assert (found.repeats, found.batch) == (5, "2 x 5")


def test_models_are_timed_in_evaluation_mode_without_gradients_and_keep_their_mode(clock):
    before, after = Slow(clock, 0.3).train(), Slow(clock, 0.1).eval()
    compare(before, after, {"x": torch.ones(1)}, repeats=3)
    assert before.modes == after.modes == [(False, False)] * 5
    assert before.training
    assert not after.training


def test_a_timing_of_small_models_takes_several_passes(clock):
    before, after = Slow(clock, 0.004), Slow(clock, 0.002)
    found = compare(before, after, {"x": torch.ones(1)}, repeats=3)
    assert len(before.modes) == len(after.modes) == 2 + 3 * 10
    assert (found.before, found.after, found.speedup) == pytest.approx((0.004, 0.002, 2.0))


def test_the_speedup_is_the_quotient_of_the_two_latencies(monkeypatch):
    model, batch = nn.Linear(1, 1), {"x": torch.ones(1)}
    # The median of the ratios 1, 3 and 2 would be 2.
    durations = iter([1.0, 1.0, 3.0, 1.0, 8.0, 4.0])
    monkeypatch.setattr(latency, "time_pass", lambda model, batch: next(durations))
    found = compare(model, model, batch, repeats=3)
    assert (found.before, found.after, found.speedup) == (3.0, 1.0, 3.0)


def test_latency_of_real_models(bert):
    compact = copy.deepcopy(bert)
    gating.prune_heads(compact, {0: range(4), 1: range(4)})
    found = compare(bert, compact, batch_for(bert), repeats=3)
    assert min(found.before, found.after, found.speedup) > 0
    assert found.batch == "2 x 10"


def test_a_busy_machine_takes_more_timings(monkeypatch):
    model, batch = nn.Linear(1, 1), {"x": torch.ones(1)}
    durations = iter([1.0, 0.5, 2.0, 0.5, 1.0, 0.7] * 20)
    monkeypatch.setattr(latency, "time_pass", lambda model, batch: next(durations))
    assert compare(model, model, batch, repeats=3, precision=0.01).repeats == 24
    monkeypatch.setattr(latency, "time_pass", lambda model, batch: 1.0)
    calm = compare(model, model, batch, repeats=3, precision=0.01)
    assert (calm.repeats, calm.speedup) == (3, 1.0)
