"""A signal in the middle of writing leaves nothing behind."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from gating.storage.atomic import replacing_file
from gating.storage.folders import replacing_folder
from gating.storage.results import COMPACT_MODEL
from gating.storage.stops import exiting_on_signals
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
