"""Descriptions of a user's objects: equal ones in each process, and different ones where their numbers differ."""

import dataclasses
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gating.integrations.descriptions import describe


class Rule:
    def __init__(self, factor, names=frozenset({"a", "b", "c"})):
        self.factor, self.names = factor, names

    def score(self, value):
        return self.factor * value


@dataclasses.dataclass(frozen=True)
class CallableRule:
    factor: float

    def __call__(self, value):
        return self.factor * value


class Slots:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor


def scaled(factor):
    def inner(value, *, least=0.0):
        """Scale it."""
        return max(least, factor * value) if value not in {"a", "b", "c"} else least

    return inner


KINDS = {
    "closure": scaled,
    "default": lambda factor: eval(f"lambda value, factor={factor}: value"),
    "code": lambda factor: eval(f"lambda value: {factor} * value"),
    "partial": lambda factor: functools.partial(torch.mul, factor),
    "keyword": lambda factor: functools.partial(scaled, factor=factor),
    "callable dataclass": CallableRule,
    "object": Rule,
    "method": lambda factor: Rule(factor).score,
    "slots": Slots,
    "in a list": lambda factor: [Rule(factor)],
    "array": lambda factor: np.full((2, 2), factor),
    "long": lambda factor: [factor] * 2000,
    "bytes": lambda factor: str(factor).encode(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_objects_with_other_numbers_have_other_descriptions(kind):
    make = KINDS[kind]
    assert describe(make(1.0)) == describe(make(1.0))
    assert describe(make(1.0)) != describe(make(-1.0))


@pytest.mark.processes
def test_descriptions_are_the_same_in_another_process():
    program = "from tests.integrations.test_descriptions import KINDS, describe\n"
    program += "print([describe(make(1.0)) for make in KINDS.values()])"
    said = [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    ]
    here = str([describe(make(1.0)) for make in KINDS.values()])
    assert [one.splitlines()[-1] for one in said] == [here, here]
    assert "0x" not in here


def test_an_object_that_refers_to_itself_has_a_description():
    rule = Rule(1.0)
    rule.owner, rule.function = rule, lambda: rule
    assert describe(rule)["owner"]["factor"] == 1.0


def test_a_partial_of_many_values_has_a_description():
    described = describe(functools.partial(dict, **{f"value{index}": index for index in range(3000)}))
    assert described["value2999"] == 2999
