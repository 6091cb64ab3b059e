"""Sizes and work of the dense and the compact model in tables and in metrics.json."""

import copy

from hypothesis import example, given
from hypothesis import strategies as st

import gating
from gating.pruning.latency import LatencyComparison
from gating.pruning.measure import count_macs
from gating.report.rows import latency_rows, size_rows
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


@example(0.0032983019947069427, 0.0032983019947069427)
@given(st.floats(1e-3, 1e12), st.floats(1e-3, 1))
def test_a_ratio_is_that_of_the_numbers_beside_it(before, share):
    times = LatencyComparison(float(f"{before:.4g}"), float(f"{before * share:.4g}"), 9, "1", 1e-9)
    rows = [*size_rows({"macs": (before, before * share), "parameters": (before // 1 + 1, before * share // 1)}, {})]
    for row in rows:
        first, second = (float(text.replace(",", "")) for text in (row.before, row.after))
        digits = len(row.ratio.partition(".")[2])
        assert not first or row.ratio in (f"{second / first:.{digits}f}", f"{second / first:.1e}")
    (row,) = latency_rows([times])
    first, second = (float(text.replace(",", "")) for text in (row.before, row.after))
    assert row.ratio in (f"{first / second:.2f}x as fast", "no difference")
