"""Errors of users are distinguished from faults, and explained in one sentence."""

import json

import pytest

import gating
from gating.errors import explain, is_input_error
from gating.objectives.budget import resolve_budget


def caught(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ConnectionError("x"), TimeoutError()])
def test_files_and_networks_are_the_users_world(error):
    assert is_input_error(error)


def test_errors_that_this_package_raises_on_purpose_are_about_input(bert):
    assert is_input_error(caught(resolve_budget, 0, None, total=4))
    assert is_input_error(caught(gating.prune_heads, bert, {9: [0]}))
    assert is_input_error(caught(gating.prune_heads, bert, {0: [0.5]}))


def test_errors_of_libraries_are_faults():
    assert not is_input_error(caught(json.loads, "{"))
    assert not is_input_error(caught(int, "x"))
    assert not is_input_error(caught(lambda: [][1]))


def test_errors_of_libraries_called_by_this_package_are_faults(gates):
    # int() of a text, inside the library's own code, is no sentence for a user.
    assert not is_input_error(caught(gates.fixed_at("values").__enter__))


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError("x"), KeyboardInterrupt(), ValueError("never raised")])
def test_other_errors_are_faults(error):
    assert not is_input_error(error)


def test_modules_that_merely_begin_like_this_package_are_not_it():
    scope = {"__name__": "gating_tools"}
    exec("def fail():\n    raise ValueError('x')", scope)
    assert not is_input_error(caught(scope["fail"]))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError("data.train=x: there is no such file."), "data.train=x: there is no such file."),
        (ValueError("seed=-1 cannot\nbe used."), "seed=-1 cannot be used."),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_errors_are_explained_in_one_line(error, sentence):
    assert explain(error) == sentence
