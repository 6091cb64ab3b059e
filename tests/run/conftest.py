"""Runs that the tests of this folder share."""

import shutil
from pathlib import Path

import pytest

from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in


@pytest.fixture(scope="session")
def interrupted(tiny_inputs, tmp_path_factory) -> tuple[Path, Path]:
    """The folder of a run that ended in its search, at step 7 of 9, and a copy of it as it was."""
    place = tmp_path_factory.mktemp("half")
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(place / "run", tiny_inputs)
    return place / "run", Path(shutil.copytree(place / "run", place / "copy"))


@pytest.fixture
def half(interrupted) -> Path:
    """The folder of a run that ended in its search, with a checkpoint after step 4; a test may change it."""
    folder, copied = interrupted
    shutil.rmtree(folder)
    return Path(shutil.copytree(copied, folder))


@pytest.fixture(scope="session")
def begun(tiny_inputs, tmp_path_factory) -> Path:
    """The folder of a run that ended at its third step."""
    return begin(tmp_path_factory.mktemp("begun") / "run", tiny_inputs)


def begin(folder: Path, inputs: list[str]) -> Path:
    """Begin a run and end it at its third step; return its folder."""
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs)
    return folder


@pytest.fixture
def moved(begun, tmp_path) -> Path:
    """A copy of that folder at another place."""
    return Path(shutil.copytree(begun, tmp_path / "moved"))
