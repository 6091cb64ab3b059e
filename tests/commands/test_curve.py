"""The command that shows what smaller sizes of a model cost, without training."""

import json
from pathlib import Path

import pytest

from gating.commands import curve
from tests.support.interruptions import Interrupted, run_in
from tests.test_main import run

pytestmark = [
    pytest.mark.runs,
    pytest.mark.filterwarnings("ignore:.*positions are few for layers"),
    pytest.mark.filterwarnings("ignore:The model has a loss of"),
]


@pytest.fixture(scope="module")
def dense(inputs, tmp_path_factory) -> Path:
    """A dense run."""
    folder = tmp_path_factory.mktemp("dense") / "run"
    settings = [line for line in inputs if not line.startswith("objective.")]
    run_in(folder, settings, "objective=none", "trainer.max_steps=4")
    return folder


@pytest.mark.first
def test_a_curve_is_made_once_and_an_interrupted_one_goes_on(dense, tmp_path, monkeypatch, capsys):
    place = tmp_path / "curve"
    arguments = (dense, "--output", place, "--keep", "0.8", "0.5", "--max-drop", "100")
    make, made = curve._Maker.make, []

    def once(self, kind, target):
        if made:
            raise Interrupted
        made.append(target)
        return make(self, kind, target)

    monkeypatch.setattr(curve._Maker, "make", once)
    with pytest.raises(Interrupted):
        run(monkeypatch, "curve", *arguments)
    assert [point["keep"] for point in json.loads((place / "curve.json").read_text())["points"]] == [0.8]
    made.clear()
    run(monkeypatch, "curve", *arguments)
    assert made == [0.5]
    out = capsys.readouterr().out
    assert "Recommended: 0.5 of the cost" in out
    assert "python train.py experiment=untrained" in out
    assert (place / "curve.png").stat().st_size > 1000
    assert "Recommended" in (place / "index.html").read_text()
    run(monkeypatch, "curve", *arguments, "--json")
    assert json.loads(capsys.readouterr().out)["recommended"] == 0.5
    assert made == [0.5]


def test_without_labels_the_score_is_the_agreement(dense, tmp_path, monkeypatch, capsys):
    texts = tmp_path / "texts.tsv"
    texts.write_text("text\n" + "".join(f"word{number % 40} word{number % 7}\n" for number in range(60)))
    settings = ("data=files", f"data.train={texts}", "--keep", "0.6", "--output", tmp_path / "curve", "--json")
    run(monkeypatch, "curve", dense / "compact", *settings)
    found = json.loads(capsys.readouterr().out)
    assert found["score"]["name"] == "agreement"
    assert found["dense"]["value"] == 1.0


def test_a_curve_of_other_data_and_a_size_that_is_none_are_refused(dense, tmp_path, monkeypatch):
    (tmp_path / "curve").mkdir()
    (tmp_path / "curve" / "curve.json").write_text('{"about": {}, "dense": {}, "points": []}')
    with pytest.raises(SystemExit, match="curve of another model or data"):
        run(monkeypatch, "curve", dense, "--output", tmp_path / "curve")
    with pytest.raises(SystemExit, match=r"keep 1\.5"):
        run(monkeypatch, "curve", dense, "--output", tmp_path / "other", "--keep", "1.5")


def test_8_bit_weights_are_scored_and_timed_beside_those_of_the_dense_model(dense, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="the packages of the export are not installed")
    run(monkeypatch, "curve", dense, "--output", tmp_path / "curve", "--keep", "0.5", "--int8", "--json")
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["dense"]["int8"] <= 1
    assert found["dense"]["int8_speedup"] == 1
    assert found["points"][0]["int8_speedup"] > 0
