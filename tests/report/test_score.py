"""Metrics are shown in their units."""

import math

import pytest

from gating.report.score import Score


@pytest.mark.parametrize(
    ("score", "value", "shown"),
    [
        (Score("accuracy"), 0.9824, "98.24 %"),
        (Score("bleu", unit=""), 0.3111, "31.11"),
        (Score("perplexity", scale=1, unit=""), 12.5, "12.50"),
        (Score("accuracy"), math.nan, "-"),
    ],
)
def test_values_are_shown_in_their_unit(score, value, shown):
    assert score.show(value) == shown
