"""Runs that the tests of this folder share."""

import shutil
from pathlib import Path

import pytest

from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.tiny_run import make_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_in(folder, inputs)
    return folder


@pytest.fixture
def half(inputs, tmp_path) -> Path:
    """The folder of a run that ended in its search, at step 7 of 9, with a checkpoint after step 4."""
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def begun(inputs, tmp_path_factory) -> Path:
    """The folder of a run that ended at its third step."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs)
    return folder


@pytest.fixture
def moved(begun, tmp_path) -> Path:
    """A copy of that folder at another place."""
    return Path(shutil.copytree(begun, tmp_path / "moved"))
