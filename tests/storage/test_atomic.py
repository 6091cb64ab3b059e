"""Files are replaced as a whole or not at all."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from gating.storage.atomic import replacing_file


@contextmanager
def small_files() -> Iterator[None]:
    """Limit files to 50 kB, so that the system raises the errors of a full disk.

    Not a fixture: pytest itself writes between a test and its teardown, perhaps to a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path):
    target = tmp_path / "deep" / "file"
    for text in ("old", "new"):
        with replacing_file(target) as new:
            new.write_text(text)
            assert not target.exists() or target.read_text() == "old"
        assert target.read_text() == text
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_nothing_changes_when_writing_fails(error, tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def write() -> None:
        with replacing_file(target) as new:
            new.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def write() -> None:
        with replacing_file(target) as new, new.open("wb") as file:
            torch.save(torch.zeros(100_000), file)

    with pytest.raises(OSError, match=r"File too large: .*/file'") as caught, small_files():
        write()
    assert caught.value.filename == str(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
