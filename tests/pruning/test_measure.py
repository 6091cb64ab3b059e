"""Measurements of models: latency, heads and size."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import gating
from gating.pruning.measure import compare_latency, count_heads, weight_megabytes
from tests.support.tiny_models import batch_for


class Slow(nn.Module):
    """A model that takes a given time on the fake clock and records its mode in each pass."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.clock, self.seconds, self.modes = clock, seconds, []

    def forward(self, x):
        self.clock[0] += self.seconds
        self.modes.append((self.training, torch.is_grad_enabled()))


@pytest.fixture
def clock(monkeypatch):
    """A fake clock that only forward passes advance."""
    now = [0.0]
    monkeypatch.setattr("gating.pruning.measure.time.perf_counter", lambda: now[0])
    return now


def test_latency_is_the_median_and_the_speedup_its_ratio(clock):
    before, after = Slow(clock, 0.3), Slow(clock, 0.1)
    found = compare_latency(before, after, {"x": torch.ones(2, 5)}, repeats=5, warm_up=2)
    assert found.before == pytest.approx(0.3)
    assert found.after == pytest.approx(0.1)
    assert found.speedup == pytest.approx(3.0)
    assert (found.repeats, found.batch) == (5, "2 x 5")


def test_models_are_timed_in_evaluation_mode_without_gradients_and_keep_their_mode(clock):
    before, after = Slow(clock, 0.3).train(), Slow(clock, 0.1).eval()
    compare_latency(before, after, {"x": torch.ones(1)}, repeats=3, warm_up=2)
    assert before.modes == after.modes == [(False, False)] * 5
    assert before.training
    assert not after.training


def test_latency_of_real_models(bert):
    compact = copy.deepcopy(bert)
    gating.prune_heads(compact, {0: range(4), 1: range(4)})
    found = compare_latency(bert, compact, batch_for(bert), repeats=3, warm_up=1)
    assert min(found.before, found.after, found.speedup) > 0
    assert found.batch == "2 x 10"


def test_heads_are_counted_before_and_after_removal(model):
    assert count_heads(model) == 12
    gating.prune_heads(model, {0: [1], 1: range(4)})
    assert count_heads(model) == 7


def test_megabytes_are_those_of_the_file(bert, tmp_path):
    save_file(bert.state_dict(), tmp_path / "model.safetensors")
    # The file has a table of contents of some kilobytes.
    size = (tmp_path / "model.safetensors").stat().st_size / 1e6
    assert weight_megabytes(bert) == pytest.approx(size, abs=0.01)


def test_shared_weights_count_once():
    layer = nn.Linear(10, 10, bias=False)
    assert weight_megabytes(nn.ModuleList([layer, layer])) == pytest.approx(400e-6)


def test_half_precision_takes_half_the_space(bert):
    size = weight_megabytes(bert)
    assert weight_megabytes(bert.to(torch.bfloat16)) == pytest.approx(size / 2)
