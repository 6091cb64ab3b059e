"""Former module names that the documentation told users to import."""

import importlib
import sys

import pytest

import gating.data.sources
import gating.tasks.base


@pytest.fixture
def former(monkeypatch):
    """Return the package of former names, and forget it afterwards."""
    for name in [name for name in sys.modules if name.startswith("gating.lightning")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.warns(DeprecationWarning, match="gating.lightning has moved"):
        yield importlib.import_module("gating.lightning")
    for name in [name for name in sys.modules if name.startswith("gating.lightning")]:
        del sys.modules[name]


def test_former_modules_are_those_of_today_and_warn(former):
    from gating.lightning.sources import load_files
    from gating.lightning.tasks.base import Prepared

    from gating.lightning.tasks import SequenceClassification

    assert former.sources is gating.data.sources
    assert load_files is gating.data.sources.load_files
    assert Prepared is gating.tasks.base.Prepared
    assert SequenceClassification is gating.tasks.SequenceClassification
