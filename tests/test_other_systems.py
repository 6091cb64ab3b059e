"""What macOS and Windows lack, or do otherwise, taken away on Linux: no job of ours runs there."""

import io
import os
import subprocess
import sys
from unittest.mock import MagicMock

import pytest

from gating.serving.gguf import worker
from gating.tracking.redaction import redact_output
from tests.support.tiny_run import ROOT, make_inputs

# Other packages look at `sys.platform` before they use what is missing, so that they are imported first, and keep those
# names that they use while they run.
WITHOUT = r"""
import importlib, os, pkgutil, signal, sys
import accelerate, datasets, hydra, matplotlib.figure, peft, pyarrow, pytorch_lightning, sacrebleu
import sentence_transformers, torchmetrics, transformers, wandb

gone = "O_DIRECTORY fork getloadavg getpgid killpg link mkfifo pidfd_open sched_getaffinity setsid symlink"
for name in (*gone.split(), "sysconf", "uname"):
    delattr(os, name)
os.process_cpu_count = os.cpu_count
del signal.SIGHUP
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))

def check_closed(path):
    path = os.path.abspath(path)
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    places = [os.readlink(link) for link in links if os.path.lexists(link)]
    places += [line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps", encoding="utf-8")]
    found = [place for place in places if place == path or place.startswith(path + os.sep)]
    assert not found, f"Windows does not rename {path}: {found} is open"

def rename(path, target, *, rename=os.rename):
    check_closed(path)
    assert not os.path.lexists(target), f"Windows does not rename {path} to {target}, which exists"
    rename(path, target)

os.rename = rename
import gating

for module in pkgutil.walk_packages(gating.__path__, "gating."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:  # A package of an export.
        assert error.name not in sys.modules and not error.name.startswith("gating"), error
import gating.run.folder
import train

gating.run.folder._MOVES_OPEN_FILES = False
train.command_line()
"""


@pytest.mark.processes
@pytest.mark.first
def test_every_module_is_imported_and_a_run_ends(tmp_path):
    settings = [*make_inputs(tmp_path), "logger=csv", f"output_dir={tmp_path / 'run'}", "overwrite=true"]
    (tmp_path / "run" / "compact").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, *settings]
    process = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert process.returncode == 0, process.stderr.decode(errors="replace")[-3000:]
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert (tmp_path / "run.1" / "compact").is_dir()


def test_an_output_without_arrows_has_the_other_characters(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    redact_output()
    print("heads 40.3 → 18, ± 2 %", flush=True)
    assert written.getvalue().decode("cp1252") == "heads 40.3 ? 18, ± 2 %\n"


def test_cores_are_counted_without_an_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    parameters = MagicMock()
    monkeypatch.setitem(sys.modules, "xllamacpp", MagicMock(CommonParams=lambda: parameters))
    worker._load({"file": "model.gguf", "context": 8})
    assert parameters.cpuparams.n_threads == 3
