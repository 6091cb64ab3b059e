"""Removal of given groups of neurons, and the requests that are refused."""

import numpy as np
import pytest
import torch

import gating
from gating.pruning.prune_report import num_parameters
from tests.support.tiny_models import assert_same_state, state_of

NAMES = [f"encoder.layer.{layer}.output.dense" for layer in range(3)]


def test_parameters_and_neurons_are_counted_before_and_after(bert):
    before = num_parameters(bert)
    report = gating.prune_neurons(bert, {0: [2], -1: [0, 1, 2]}, group_size=20)
    assert report.kept_neurons == dict(zip(NAMES, [(0, 1), (0, 1, 2), ()], strict=True))
    assert (report.num_neurons_before, report.num_neurons) == (144, 144 - 8 - 48)
    # A row of 32 weights, a bias and a column of 32 for each neuron.
    assert report.num_parameters_before == before
    assert report.num_parameters == num_parameters(bert) == before - (8 + 48) * (2 * 32 + 1)
    assert (report.num_heads_before, report.num_heads) == (12, 12)


@pytest.mark.parametrize(
    "request_of",
    [
        {1: [np.int64(0), np.int64(2)]},
        {np.int64(1): np.array([0, 2])},
        {torch.tensor(1): torch.tensor([0, 2])},
        {-2: {0, 2}},
        {NAMES[1]: (0, 2)},
        {1: [0], NAMES[1]: [2]},
    ],
)
def test_layers_and_groups_are_numbers_and_names(request_of, bert, tmp_path):
    assert gating.prune_neurons(bert, request_of, group_size=np.int64(16)).kept_neurons[NAMES[1]] == (1,)
    gating.save_compact(bert, tmp_path / "compact", verify=False)


def test_groups_keep_their_original_numbers_and_size(bert, make_model):
    gating.prune_neurons(bert, {1: [0]}, group_size=16)
    # All layers are counted in the groups of the earlier removal.
    report = gating.prune_neurons(bert, {1: [1], 0: [2]})
    assert report.kept_neurons == dict(zip(NAMES, [(0, 1), (2,), (0, 1, 2)], strict=True))
    at_once = make_model("bert")
    gating.prune_neurons(at_once, {1: [0, 1], 0: [2]}, group_size=16)
    assert_same_state(bert, state_of(at_once))
    assert bert.config.head_gating == at_once.config.head_gating
    assert gating.prune_neurons(bert, {1: [0]}).num_neurons == report.num_neurons


def test_smaller_groups_divide_those_of_an_earlier_removal(bert):
    gating.prune_neurons(bert, {1: [0]}, group_size=16)
    report = gating.prune_neurons(bert, {1: [2, 11]}, group_size=4)
    assert report.kept_neurons[NAMES[1]] == (4, 5, 6, 7, 8, 9, 10)
    assert report.kept_neurons[NAMES[0]] == tuple(range(12))
    with pytest.raises(ValueError, match="group_size=16"):
        gating.prune_neurons(bert, {1: [1]}, group_size=16)


def test_heads_and_neurons_go_in_any_order(make_model):
    first, second = make_model("bert"), make_model("bert")
    gating.prune_heads(first, {0: [1], 1: range(4)})
    gating.prune_neurons(first, {0: [1], 2: range(3)}, group_size=16)
    gating.prune_neurons(second, {0: [1], 2: range(3)}, group_size=16)
    gating.prune_heads(second, {0: [1], 1: range(4)})
    assert_same_state(first, state_of(second))
    assert first.config.head_gating == second.config.head_gating
    assert len(first.config.head_gating["units"]) == 4
