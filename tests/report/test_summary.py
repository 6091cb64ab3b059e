"""Sizes and work of the dense and the compact model in tables and in metrics.json."""

import copy

import gating
from gating.pruning.measure import count_macs
from gating.report.score import Score
from gating.report.summary import Summary
from tests.support.tiny_models import batch_for


def compared(dense, compact, batch=None):
    summary = Summary()
    summary.compare_models(dense, compact, batch)
    return summary


def rows_of(summary):
    return {row.name: (row.before, row.after, row.ratio) for row in summary.compact_report(Score("accuracy")).rows}


def test_heads_neurons_and_multiply_accumulates_are_compared(bert):
    compact = copy.deepcopy(bert)
    gating.prune_heads(compact, {0: [1, 2, 3]})
    gating.prune_neurons(compact, {0: [1, 5], 1: range(6)}, group_size=8)
    batch = batch_for(bert)
    summary = compared(bert, compact, batch)
    numbers = summary.flat()
    assert (numbers["num_neurons_before"], numbers["num_neurons"]) == (144, 80)
    assert (numbers["macs_before"], numbers["macs"]) == (count_macs(bert, batch), count_macs(compact, batch))
    assert numbers["macs"] < numbers["macs_before"]
    rows = rows_of(summary)
    assert list(rows) == [
        "attention heads",
        "feed-forward neurons",
        "multiply-accumulates (millions)",
        "parameters",
        "size on disk (MB)",
    ]
    assert rows["feed-forward neurons"] == ("144", "80", "0.56")
