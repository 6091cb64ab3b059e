"""Random bad input ends in a right result or in one sentence."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.bad_input import AREAS, Area, outcome


@pytest.mark.runs
@pytest.mark.parametrize("name", AREAS)
def test_bad_input_gives_a_right_result_or_one_sentence(name):
    area = AREAS[name]

    @settings(
        max_examples=24 // area.cost,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(area.cases)
    def check(case):
        assert outcome(area, case) in ("result", "sentence")

    check()


def wrong_result(_):
    raise AssertionError("wrong result")


# The second raises in a library, the third in code of no package.
@pytest.mark.parametrize("attempt", [wrong_result, json.loads, {}.__getitem__])
def test_a_wrong_result_and_a_traceback_are_noticed(attempt):
    with pytest.raises((AssertionError, TypeError, KeyError)):
        outcome(Area(st.none(), attempt), None)
