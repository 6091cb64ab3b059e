"""The folders that commands take: of a model in either form, of a run, and of a sweep, which they refuse."""

from pathlib import Path

import pytest

import gating
from tests.support.family_models import FAMILIES
from tests.support.sweeps import write_run
from tests.support.tiny_run import make_model_folder
from tests.test_main import run as run_command


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Call a command; return its error."""
    try:
        run_command(monkeypatch, *arguments)
    except SystemExit as end:
        return str(end.code)
    return ""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    folder = write_run(tmp_path / "run")
    make_model_folder(folder / "compact")
    return folder


def test_inspect_takes_a_run(run, monkeypatch, capsys):
    assert call(monkeypatch, "inspect", run) == ""
    shown = " ".join(capsys.readouterr().out.split())
    assert "12 of 12 heads" in shown
    assert f"{run}/compact" in shown.replace(" ", "")[-400:]


@pytest.mark.parametrize("stock", [True, False])
def test_inspect_shows_the_original_numbers_and_the_cache_of_both_forms(stock, tmp_path, monkeypatch, capsys):
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {layer: range(4) for layer in range(3)})
    gating.prune_neurons(model, {layer: [layer] for layer in range(3)}, group_size=16)
    folder = gating.save_compact(model, tmp_path / "model", stock=stock)
    assert call(monkeypatch, "inspect", folder) == ""
    shown = " ".join(capsys.readouterr().out.split())
    assert "12 of 24 heads, 96 of 144 neurons" in shown
    assert "384 of 768 bytes of keys and values are cached for a token" in shown


@pytest.mark.runs
@pytest.mark.filterwarnings("ignore")  # Of torch's and transformers' own tracing.
def test_export_takes_a_run(run, monkeypatch, capsys):
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    assert call(monkeypatch, "export", run, "--format", "onnx") == ""
    assert f"{run}/compact-onnx: " in capsys.readouterr().out


def test_an_existing_export_is_refused_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (run / "compact" / "model.safetensors").write_text("damaged")
    error = call(monkeypatch, "export", run, "--format", "vllm", "--output", tmp_path / "mine")
    assert error.startswith(f"error: {tmp_path}/mine exists already")
