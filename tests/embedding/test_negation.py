"""Negations of English sentences."""

import random

import pytest

from gating.tasks.embedding_examples import negate


@pytest.mark.parametrize(
    ("text", "negations"),
    [
        ("A man is singing.", {"A man is not singing.", "No man is singing."}),
        ("The cats can swim and are fast", {"The cats can not swim and are fast", "No cats can swim and are fast"}),
        ("a man on stage", {"no man on stage", "there is no man on stage"}),
        ("Three dogs run", {"No dogs run", "There is no dogs run"}),
        ("They were late", {"They were not late"}),
        ("They were not late", set()),
        ("it does n't matter", set()),
        ("He can't swim and is slow", set()),
        ("No one can swim, and he is never late", set()),
        ("An important elephant is here", {"An important elephant is not here", "No important elephant is here"}),
        ("One of the dogs is here", {"One of the dogs is not here"}),
        ("He'd say it's his", set()),
        ("Dogs run", set()),
        ("Ein Hund rennt", set()),
        ("", set()),
        ("a " + "very " * 25 + "long one", set()),
    ],
)
def test_forms_of_a_text(text, negations):
    assert {negate(text, random.Random(seed)) for seed in range(20)} - {None} == negations
