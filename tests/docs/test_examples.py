"""Programs and the notebook in examples/: each runs offline, and writes nothing beside itself."""

import os
import subprocess
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.support.tiny_run import ROOT
from tests.support.warm_python import warm_python

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.processes
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_program_runs_without_an_argument_and_leaves_nothing(path: Path, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*warm_python(), str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_program_says_how_it_is_called_and_what_it_needs(path: Path):
    text = path.read_text(encoding="utf-8")
    assert f"python examples/{path.name}" in text
    assert "Needs: head-gating" in text


@pytest.mark.processes
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    # The file has its outputs, for readers, of the same kinds: texts and pictures.
    assert [kinds(one) for one in shown] == [kinds(one) for one in outputs]
    assert sum("image/png" in kinds(one) for one in outputs) == 3


def kinds(outputs) -> list[str]:
    """Return the names or media types of a cell's outputs, without warnings of other packages."""
    return [one.get("name") or next(iter(set(one["data"]) - {"text/plain"})) for one in outputs]
