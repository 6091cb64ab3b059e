"""The axes of a report's charts."""

import math

import pytest

from gating.report.charts import score_axis
from gating.report.score import Score

ACCURACY = Score("accuracy")


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([91, 92], 86, 98),  # A point of accuracy is a tenth of the axis.
        ([99, 100], 90, 100),
        ([0, 1], 0, 10),
        ([20, 90], 0, 100),
        ([math.nan], 0, 10),
    ],
)
def test_percentages_span_ten_points_at_least(values, low, high):
    axis = score_axis([*values, math.inf], ACCURACY)
    assert (axis.low, axis.high) == (low, high)
    assert axis.ticks[0] == low


def test_other_scores_span_a_tenth_of_themselves():
    axis = score_axis([12.5, 12.6], Score("perplexity", scale=1, unit=""))
    assert axis.high - axis.low >= 1.2
    assert axis.low > 0
    assert score_axis([-0.5, 0.5], Score("pearson", scale=1, unit="")).low <= -0.5
