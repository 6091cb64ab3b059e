"""Files and folders are written as a whole or not at all, and what was there is renamed."""

import errno
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from gating.storage.files import check_free, move_aside, replacing_file, replacing_folder


def make_result(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_text("old")


def replacing(target, *, overwrite=True):
    return replacing_folder(target, overwrite=overwrite)


@pytest.mark.parametrize("path", ["new", "deep/down/new", "empty"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_or_empty_folder_is_fine_and_nothing_is_left_behind(tmp_path, path, overwrite):
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / path, overwrite=overwrite)
    assert [place.name for place in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("name", ["model.gguf", "folder"])
def test_what_is_there_is_refused_or_renamed(tmp_path, name, caplog):
    for number in (1, 2):
        place = tmp_path / name
        if name == "folder":
            place.mkdir()
            place = place / "file"
        place.write_text(str(number))
        with pytest.raises(FileExistsError, match="overwrite=True"):
            check_free(tmp_path / name, overwrite=False)
        check_free(tmp_path / name, overwrite=True)
        assert move_aside(tmp_path / name) in (tmp_path / f"model.{number}.gguf", tmp_path / f"folder.{number}")
    assert len(caplog.records) == 2
    assert move_aside(tmp_path / name) is None
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("path", ["file/below", "file/far/below"])
def test_a_path_through_a_file_is_refused_by_the_name_of_the_file(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match=rf"{path} cannot be written: .*file is no folder"):
        check_free(tmp_path / path, overwrite=True)


@contextmanager
def small_disk():
    """Limit files to 1000 bytes, so that the system raises the errors of a full disk.

    Not a fixture: pytest itself writes between a test and its teardown, perhaps to a longer file.
    """
    resource = pytest.importorskip("resource", reason="Windows does not limit files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_text(folder):
    (folder / "text").write_text("x" * 5000)


def write_weights(folder):
    save_file({"weight": torch.zeros(5000)}, folder / "model.safetensors")


@pytest.mark.parametrize("write", [write_text, write_weights])
@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_folder(tmp_path, write, exists):
    target = tmp_path / ("there" if exists else "new")
    if exists:
        make_result(target)
    with (
        pytest.raises(OSError, match=rf"{target.name} cannot be written \(.+\); nothing was changed there\. Make room"),
        small_disk(),
        replacing(target) as folder,
    ):
        write(folder)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == (
        ["there", "there/model.safetensors"] if exists else []
    )


def test_a_full_disk_names_the_file_where_numpy_gives_no_number(tmp_path):
    with pytest.raises(OSError, match=r"written: .*new"), small_disk(), replacing_file(tmp_path / "new") as file:
        numpy.zeros(5000).tofile(file)


@pytest.mark.parametrize("step", ["mkdtemp", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_the_message_contains_the_error_of_the_system(tmp_path, monkeypatch, step, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((tempfile, "mkdtemp") if step == "mkdtemp" else (os, "fsync")), refuse)
    with (
        pytest.raises(OSError, match=rf"new cannot be written \({os.strerror(number)}\)"),
        replacing(tmp_path / "new", overwrite=False) as folder,
    ):
        (folder / "file").write_text("x")
    assert os.listdir(tmp_path) == []


def test_the_new_folder_is_on_the_disk_before_the_old_one_is_renamed(tmp_path, monkeypatch):
    target = tmp_path / "there"
    make_result(target)
    flushed = []

    def fsync(file):
        assert (target / "model.safetensors").read_text() == "old"
        flushed.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
    assert {"file", "new", "sub"} <= set(flushed)
    assert os.listdir(target) == ["sub"]
    assert (tmp_path / "there.1" / "model.safetensors").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["there", "there.1"]


def test_a_link_is_renamed_and_its_target_stays(tmp_path):
    make_result(tmp_path / "far")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    with pytest.raises(FileExistsError), replacing(tmp_path / "link", overwrite=False):
        pass
    with replacing(tmp_path / "link") as folder:
        (folder / "new").write_text("")
    assert (tmp_path / "far" / "model.safetensors").exists()
    assert (tmp_path / "link.1").is_symlink()
    assert os.listdir(tmp_path / "link") == ["new"]


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

    with pytest.raises(OSError, match=r"File too large: .*/file'") as caught, small_disk():
        write()
    assert caught.value.filename == str(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
