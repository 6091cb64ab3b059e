"""The command line beside training."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

import gating
from gating import __main__ as command_line
from gating.proof.probe import make_probe
from gating.pruning.measure import count_macs
from tests.support.tiny_run import ROOT, make_model_folder
from tests.support.warm_python import warm_python


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    model = BertForSequenceClassification.from_pretrained(make_model_folder(folder / "model"))
    gating.prune_heads(model, {0: [1, 2], 1: [0, 1, 2, 3]})
    return gating.save_compact(model, folder / "compact")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Call a command in this process."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(sys, "argv", ["head-gating", *map(str, arguments)])
    command_line.main()


def test_inspect_shows_heads_parameters_and_sizes(compact, monkeypatch, capsys):
    run(monkeypatch, "inspect", compact)
    shown = capsys.readouterr().out
    assert "2 of 4" in shown
    assert "0 of 4" in shown
    assert "6 of 12 heads" in shown
    assert f"{gating.load_compact(compact).num_parameters():,} parameters" in shown


def test_inspect_shows_neurons_and_multiply_accumulates(compact, tmp_path, monkeypatch, capsys):
    model = gating.load_compact(compact)
    gating.prune_neurons(model, {0: range(4), 1: range(8)}, group_size=8)
    run(monkeypatch, "inspect", gating.save_compact(model, tmp_path / "compact"))
    shown = capsys.readouterr().out
    assert "32 of 64" in shown
    assert "0 of 64" in shown
    assert "6 of 12 heads, 96 of 192 neurons" in shown
    macs = count_macs(model, make_probe(model, batch_size=1, length=128))
    assert f"{macs / 1e6:,.1f} million multiply-accumulates for an example of 128 tokens" in shown


@pytest.mark.processes
@pytest.mark.parametrize("output", ["| true", "> /dev/full"])
def test_commands_finish_without_their_output(output, compact, tmp_path):
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    command = " ".join([*warm_python(), "-m", "gating"])
    for arguments in (f"inspect {compact}", f"export {compact} --format onnx --output {tmp_path}/exported"):
        line = f"set -o pipefail; {command} {arguments} {output}"
        process = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        assert "rror" not in process.stderr
    assert (tmp_path / "exported" / "export.json").is_file()


def test_existing_exports_are_kept_without_the_option_to_overwrite(compact, tmp_path, monkeypatch):
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "export", compact, "--format", "vllm", "--output", tmp_path)
    assert str(stop.value).startswith(f"error: {tmp_path} exists already")
    assert (tmp_path / "export.json").read_text() == "{}"


def test_train_is_the_command_of_a_checkout():
    command = [*warm_python(), "-m", "gating", "train", "--cfg", "job", "objective.num_heads=7"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "num_heads: 7" in shown
