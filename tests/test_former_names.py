"""Former module names that the documentation told users to import."""

import importlib
import sys

import pytest

import gating.data.sources
import gating.tasks.base

FORMER = {
    "gating.lightning.sources": gating.data.sources,
    "gating.lightning.tasks": gating.tasks,
    "gating.lightning.tasks.base": gating.tasks.base,
}


@pytest.fixture(autouse=True)
def _forget_former_names():
    names = [name for name in sys.modules if name.startswith("gating.lightning")]
    before = {name: sys.modules.pop(name) for name in names}
    yield
    for name in [name for name in sys.modules if name.startswith("gating.lightning")]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("name", FORMER)
def test_former_modules_are_those_of_today_and_warn(name):
    with pytest.warns(DeprecationWarning, match=r"gating\.lightning has moved"):
        module = importlib.import_module(name)
    assert module is FORMER[name]
