import tempfile
from pathlib import Path

import pytest

from gating.folder import check_folder, clear_folder


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
    with pytest.raises(FileExistsError, match=r"holds something already.*overwrite=true"):
        check_folder(tmp_path, overwrite=False)
    check_folder(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize("path", ["file", "file/below", "file/far/below"])
def test_a_path_through_a_file_is_refused_by_the_name_of_the_file(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match=rf"{path} cannot be a folder: .*file is a file"):
        check_folder(tmp_path / path, overwrite=False)


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    # Not by permissions: the superuser may write everywhere.
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError, match=r"output_dir=.*new cannot be written to \(Permission denied in .*\)"):
        check_folder(tmp_path / "new", overwrite=False)


def test_clearing_takes_what_a_run_left_and_nothing_else(tmp_path):
    for name in ("compact", "csv", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    clear_folder(tmp_path)  # a folder that no run made: all of it is the user's
    assert {path.name for path in tmp_path.iterdir()} == {"compact", "csv", "mine"}
    (tmp_path / "config.yaml").write_text("task:\n  _target_: gating.lightning.tasks.SequenceClassification\n")
    (tmp_path / "metrics.json").write_text("{}")
    clear_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}
