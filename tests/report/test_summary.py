"""Sizes and work of the dense and the compact model in tables and in metrics.json."""

import copy

import gating
from gating.pruning.latency.copies import LatencyComparison
from gating.pruning.measure import count_macs
from gating.report.score import Score
from gating.report.summary import Summary
from tests.support.family_models import FAMILIES
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


def test_generating_models_have_a_row_for_the_cache():
    dense = FAMILIES["llama"].build()
    compact = copy.deepcopy(dense)
    gating.prune_heads(compact, {0: range(8)})
    summary = compared(dense, compact)
    assert rows_of(summary)["key-value cache (bytes per token)"] == ("768", "512", "0.67")
    assert summary.flat()["cache_bytes_per_token"] == 512


def test_numbers_that_a_model_does_not_have_are_left_out(bert):
    numbers = compared(bert, bert).flat()
    assert not [name for name in numbers if name.startswith(("macs", "cache"))]
    for block in gating.find_feed_forward_blocks(bert):
        # No pair of projections with these names is known.
        block.module.output.projection = block.module.output.dense
        del block.module.output.dense
    numbers = compared(bert, bert).flat()
    assert not [name for name in numbers if "neurons" in name]
    assert numbers["num_heads"] == 12


def test_a_note_names_the_batch_of_the_multiply_accumulates(bert):
    summary = compared(bert, bert, batch_for(bert))
    summary.latency = LatencyComparison(0.2, 0.1, 15, "2 x 10", 0.0049, "2 x 10 tokens, p95")
    summary.short_latency = LatencyComparison(0.02, 0.016, 5, "1 x 6", words="1 x 6 tokens, median")
    (note,) = summary.compact_report(Score("accuracy")).notes
    assert note.startswith(
        "Latency: medians of interleaved repeats (2 x 10 tokens, p95: 15 repeats, ± 0.5 %; "
        "1 x 6 tokens, median: 5 repeats, ± unknown)"
    )
    assert note.endswith("Multiply-accumulates: of one example of 2 x 10 tokens, p95.")
