"""Output folders are checked before a run and replaced as a whole."""

import errno
import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gating.storage.folders import check_folder, replacing_folder
from gating.storage.results import COMPACT_MODEL, write_manifest

RESULT = ["README.md", "config.json", "head_gating.json", "model.safetensors"]


def make_result(folder):
    """Write the files by which an earlier compact model is recognized."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_text("old")
    (folder / "README.md").write_text("A card.")
    write_manifest(folder)


def replacing(target, *, overwrite=True, keep=()):
    return replacing_folder(target, overwrite=overwrite, kind=COMPACT_MODEL, keep=keep)


@pytest.mark.parametrize("path", ["new", "deep/down/new", "empty"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_or_empty_folder_is_fine_and_nothing_is_left_behind(tmp_path, path, overwrite):
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / path, overwrite=overwrite)
    assert [place.name for place in tmp_path.rglob("*")] == ["empty"]


def test_a_relative_folder_is_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_folder(Path("runs/today"), overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused_unless_it_may_be_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match=r"is not empty.*overwrite=True"):
        check_folder(tmp_path, overwrite=False)
    check_folder(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize("path", ["file", "file/below", "file/far/below"])
def test_a_path_through_a_file_is_refused_by_the_name_of_the_file(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match=rf"{path} cannot be a folder: .*file is a file"):
        check_folder(tmp_path / path, overwrite=False)


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    # Permissions do not stop the superuser.
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError, match=r"output_dir=.*new cannot be written to \(Permission denied in .*\)"):
        check_folder(tmp_path / "new", overwrite=False)


@contextmanager
def small_disk():
    """Limit files to 1000 bytes, so that the system raises the errors of a full disk.

    Not a fixture: pytest itself writes between a test and its teardown, perhaps to a longer file.
    """
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


def write_torch(folder):
    torch.save(torch.zeros(5000), folder / "model.pt2")


@pytest.mark.parametrize("write", [write_text, write_weights, write_torch])
@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_folder(tmp_path, write, exists):
    target = tmp_path / ("there" if exists else "new/deep")
    if exists:
        make_result(target)
    with (
        pytest.raises(OSError, match=rf"{target.name} cannot be written \(.+\); nothing was changed there\. Make room"),
        small_disk(),
        replacing(target) as folder,
    ):
        write(folder)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == (
        ["there", *(f"there/{name}" for name in RESULT)] if exists else []
    )


@pytest.mark.parametrize("step", ["mkdtemp", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_the_message_contains_the_error_of_the_system(tmp_path, monkeypatch, step, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((tempfile, "mkdtemp") if step == "mkdtemp" else (os, "fsync")), refuse)
    with (
        pytest.raises(OSError, match=rf"new cannot be written \({os.strerror(number)}\)"),
        replacing(tmp_path / "deep" / "new", overwrite=False) as folder,
    ):
        (folder / "file").write_text("x")
    assert os.listdir(tmp_path) == []


def test_the_new_folder_is_on_the_disk_before_the_old_one_goes(tmp_path, monkeypatch):
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
    assert sorted(flushed) == ["file", "head_gating.json", "new", "sub"]
    assert sorted(os.listdir(target)) == ["head_gating.json", "sub"]
    assert os.listdir(tmp_path) == ["there"]


def test_other_errors_are_not_changed(tmp_path):
    with pytest.raises(RuntimeError, match=r"^differs$"), replacing(tmp_path / "new", overwrite=False):
        raise RuntimeError("differs")
    assert os.listdir(tmp_path) == []


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "thesis.txt").write_text("x")
    monkeypatch.chdir(tmp_path / "here")
    for place in (Path("."), Path(".."), tmp_path):
        with (
            pytest.raises(FileExistsError, match="holds the current folder"),
            replacing(place),
        ):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "thesis.txt"]


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    make_result(tmp_path / "far")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    with pytest.raises(FileExistsError), replacing(tmp_path / "link", overwrite=False):
        pass
    with replacing(tmp_path / "link") as folder:
        (folder / "new").write_text("")
    assert (tmp_path / "far" / "config.json").exists()
    assert not (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path / "link")) == ["head_gating.json", "new"]


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FileExistsError, match=r"new cannot be a folder: .*file is a file"),
        replacing(tmp_path / "file" / "new"),
    ):
        pass
