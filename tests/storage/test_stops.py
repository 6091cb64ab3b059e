"""A signal in the middle of writing leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from gating.storage.atomic import replacing_file
from gating.storage.folders import replacing_folder
from gating.storage.results import COMPACT_MODEL
from gating.storage.stops import exiting_on_signals
from tests.storage.test_folders import make_result, replacing
from tests.support.tiny_run import ROOT
from tests.support.warm_python import warm_python


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_folder_and_a_file_are_removed_at_a_signal(number, tmp_path):
    with pytest.raises(SystemExit) as end, replacing_folder(tmp_path / "a" / "b", overwrite=False, kind=COMPACT_MODEL):
        os.kill(os.getpid(), number)
    assert end.value.code == 128 + number
    with pytest.raises(SystemExit), replacing_file(tmp_path / "file") as new:
        new.write_text(f"half{os.kill(os.getpid(), number)}")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is signal.SIG_DFL


def test_handlers_of_a_program_stay():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("own"))
    try:
        with exiting_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["own"]


# Functions after whose call number a signal comes, and whether the new folder is in its place then.
STEPS = [
    (tempfile, "mkdtemp", 1, "old"),
    (Path, "rename", 1, "new"),
    (Path, "rename", 2, "new"),
    (shutil, "rmtree", 0, "new"),
]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("owner", "name", "call", "left"), STEPS)
def test_a_signal_between_two_steps_leaves_one_whole_folder(owner, name, call, left, number, tmp_path, monkeypatch):
    make_result(tmp_path / "there")
    function, calls = getattr(owner, name), []

    def stopped(*args, **options):
        calls.append(args)
        if len(calls) > call:
            os.kill(os.getpid(), number)
        result = function(*args, **options)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(owner, name, stopped)
    with pytest.raises((SystemExit, KeyboardInterrupt)), replacing(tmp_path / "there") as folder:
        (folder / "model.safetensors").write_text("new")
    assert os.listdir(tmp_path) == ["there"]
    assert (tmp_path / "there" / "model.safetensors").read_text() == left


def test_an_old_folder_that_cannot_be_moved_back_is_kept(tmp_path, monkeypatch):
    make_result(tmp_path / "there")
    rename = Path.rename

    def raced(path, target):
        rename(path, target)
        if path.name == "there":
            (path / "sub").mkdir(parents=True)

    monkeypatch.setattr(Path, "rename", raced)
    with pytest.raises(OSError, match="cannot be written"), replacing(tmp_path / "there"):
        pass
    (kept,) = tmp_path.glob(".there-*/old/model.safetensors")
    assert kept.read_text() == "old"


STOPPED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from transformers import BertConfig, BertModel
import gating
sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
model = BertModel(BertConfig(**sizes))
write = BertModel.save_pretrained
def stopped(self, folder, **options):
    write(self, folder, **options)
    os.kill(os.getpid(), signal.SIGTERM)
BertModel.save_pretrained = stopped
gating.save_compact(model, sys.argv[1])
"""


@pytest.mark.processes
def test_sigterm_in_a_program_of_a_user_leaves_no_hidden_folder(tmp_path: Path):
    (tmp_path / "program.py").write_text(STOPPED_WHILE_SAVING)
    place = tmp_path / "models"
    place.mkdir()
    ended = subprocess.run(
        [*warm_python(), str(tmp_path / "program.py"), str(place / "compact")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert list(place.iterdir()) == []
