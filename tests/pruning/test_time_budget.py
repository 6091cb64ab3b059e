"""The time that timings take: bounded whatever a pass takes; and latencies compared in turns."""

import copy
import itertools
import math
import random
from contextlib import suppress

import pytest
import torch
from torch import nn

import gating
from gating.pruning import latency
from gating.pruning.latency import LatencyComparison, TimeBudget
from gating.pruning.latency_costs import kept_for_speedup
from tests.support.tiers import first_of
from tests.support.timers import Slow, compare, timer_of
from tests.support.tiny_models import batch_for

UNITS = ["heads", "neurons"]


@pytest.fixture
def clock(monkeypatch):
    """A fake clock that only forward passes advance."""
    now = [0.0]
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(f"gating.pruning.latency.time.{name}", lambda: now[0])
    return now


@pytest.fixture
def passes(clock, monkeypatch):
    """Let a pass of eight rows of the model take given seconds, those of compact copies less, and count passes."""
    taken = []

    def let(model, seconds, *, noise=0.0, rows=8):
        size = sum(parameter.numel() for parameter in model.parameters())
        chance = random.Random(0)

        def timed(other, batch):
            share = sum(parameter.numel() for parameter in other.parameters()) / size
            own = seconds * share * len(next(iter(batch.values()))) / rows * (1 + noise * chance.random())
            clock[0] += own
            taken.append(own)
            return own

        monkeypatch.setattr(latency, "time_pass", timed)
        return taken

    return let


@pytest.mark.parametrize(("threads", "seconds"), [(1, 2.0), (2, 7.0)])
def test_a_thread_by_itself_is_timed_without_what_it_waits_for(bert, monkeypatch, threads, seconds):
    times = {"thread_time": itertools.count(step=2.0), "perf_counter": itertools.count(step=7.0)}
    for name, values in times.items():
        monkeypatch.setattr(latency.time, name, lambda values=values: next(values))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert latency.time_pass(bert, batch_for(bert)) == seconds


def test_the_time_ends_the_repeats(clock):
    before, after = Slow(clock, 3.0), Slow(clock, 2.0)
    found = compare(before, after, {"x": torch.ones(1)}, repeats=15, precision=0.001, seconds=33.0)
    assert 30 <= clock[0] <= 33
    assert found.repeats == 6
    assert (found.speedup, found.error) == (1.5, 0.0)


def test_a_pass_that_is_longer_than_the_time_is_timed_once(clock):
    found = compare(Slow(clock, 300.0), Slow(clock, 200.0), {"x": torch.ones(1)}, seconds=10.0)
    assert clock[0] == 500
    assert (found.speedup, found.repeats) == (1.5, 1)
    assert math.isinf(found.error)


def test_without_time_the_first_model_is_not_timed_again(clock):
    before, after = Slow(clock, 3.0), Slow(clock, 2.0)
    timer = timer_of(before, {"x": torch.ones(1)}, seconds=0.0)
    timer.timed.append(LatencyComparison(3.0, 2.0, 1, "1"))
    found = timer.time(after)
    assert clock[0] == 2
    assert (found.speedup, before.modes) == (1.5, [])


@pytest.mark.parametrize("units", first_of(["heads", "neurons", UNITS]), ids=str)
@pytest.mark.parametrize(("pass_seconds", "max_seconds"), [(3.0, 10.0), (0.5, 10.0), (500.0, 10.0), (9.0, 120.0)])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_budget_for_a_speedup_is_found_in_its_time(bert, passes, clock, units, pass_seconds, max_seconds, noise):
    taken = passes(bert, pass_seconds, noise=noise)
    batch = {name: tensor.repeat(4, 1) for name, tensor in batch_for(bert).items()}
    with suppress(gating.errors.InputError):  # Noise alone can make it unreachable.
        gating.budget_for_speedup(bert, batch, speedup=1.01, units=units, group_size=4, max_seconds=max_seconds)
    # The first row alone, the dense model, and two copies for each unit and one more are timed in any case.
    assert clock[0] <= max_seconds + (7 if units == UNITS else 5) * max(taken)


def test_the_search_for_a_choice_ends_with_the_time():
    reached = iter([(3.0, 0.0, False), (1.2, 0.0, True)])
    with pytest.warns(UserWarning, match="1.20 times"):
        kept = kept_for_speedup(
            lambda share: torch.arange(100) < share * 100, lambda _: next(reached), speedup=1.5, keep=0.5
        )
    assert 50 < kept.sum() < 100


def test_a_difference_within_the_error_ends_the_search():
    kept = kept_for_speedup(
        lambda share: torch.arange(100) < share * 100, lambda _: (1.54, 0.03, False), speedup=1.5, keep=0.5
    )
    assert kept.sum() == 50


@pytest.mark.parametrize(("pass_seconds", "rows"), [(0.1, 8), (0.8, 1), (0.4, 2), (60.0, 1)])
def test_a_batch_has_as_many_rows_as_can_be_repeated(bert, passes, pass_seconds, rows):
    passes(bert, pass_seconds)
    batch = {name: tensor.repeat(4, 1) for name, tensor in batch_for(bert).items()}
    budget = TimeBudget(10.0)
    fitted = budget.fit(bert, batch, passes=100)
    assert {name: len(tensor) for name, tensor in fitted.items()} == dict.fromkeys(batch, rows)
    assert torch.equal(fitted["input_ids"][-1], batch["input_ids"][-1])
    # Later timings have the same shape, although the machine is less busy then.
    passes(bert, 0.001)
    assert len(budget.fit(bert, batch, passes=1)["input_ids"]) == rows


@pytest.mark.parametrize(("run_seconds", "expected"), [(1.0, 20.0), (1000.0, 50.0), (1e6, 120.0)])
def test_the_time_is_a_share_of_the_run(bert, passes, run_seconds, expected):
    passes(bert, 0.001)
    budget = TimeBudget()
    budget.fit(bert, batch_for(bert), passes=10, run_seconds=lambda _: run_seconds)
    assert budget.seconds == pytest.approx(expected)


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
