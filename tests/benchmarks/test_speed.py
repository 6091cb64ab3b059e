"""Every section of the speed benchmark measures, and its tables are written into the pages."""

import json

import pytest
import torch

from benchmarks import page
from benchmarks.speed import __main__ as speed
from benchmarks.speed.latency import built_bert, count_flops
from benchmarks.speed.shapes import bert, compact_copy, kept_heads, text_batch
from gating.structure.layers import count_units

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """Keep results of tests out of the benchmark's results."""
    path = speed.ROOT / "benchmarks" / "results" / "speed-test.jsonl"
    monkeypatch.setattr(speed, "RESULTS", path)
    yield path
    path.unlink(missing_ok=True)


# These start processes.
SLOW = ("run", "finalize")


@pytest.mark.runs
@pytest.mark.parametrize("section", [pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW)) for s in speed.SECTIONS])
def test_every_section_measures(section, capsys, monkeypatch, results):
    rows = []
    measure = speed.SECTIONS[section]
    monkeypatch.setitem(speed.SECTIONS, section, lambda *a, **k: (rows.append(row) or row for row in measure(*a, **k)))
    speed.run([section], CPU, quick=True)
    assert section in capsys.readouterr().out
    assert not results.exists()
    assert rows
    for row in rows:
        assert {"what", "case", "ratio"} <= set(row)
        assert 0 <= row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2]
        json.dumps(row)


def test_a_new_result_replaces_the_one_of_its_kind_and_is_shown_beside_it(results):
    row = {"section": "steps", "what": "a", "case": "b", "device": "cpu", "ratio": [1.03, 1.0, 1.1], "at_most": 1.02}
    speed.replace(row)
    speed.replace({**row, "case": "c"})
    speed.replace({**row, "ratio": [1.01, 1.0, 1.1]})
    assert [(r["case"], r["ratio"][0]) for r in speed.records.read(results)] == [("c", 1.03), ("b", 1.01)]
    line = speed.describe({**row, "ratio": [1.01, 1.0, 1.1]}, row)
    assert "1.010" in line
    assert "was 1.030" in line
    assert "reached" in line
    assert "missed" in speed.describe(row, None)


def test_models_that_are_compared_have_the_same_heads():
    dense = bert("tiny", device=CPU).eval()
    kept = kept_heads(dense, 0.5)
    compact, built = compact_copy(dense, 0.5), built_bert(dense, kept)
    assert sum(map(len, kept.values())) == 4 == count_units(compact, "heads")
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (compact, built)]
    assert shapes[0] == shapes[1]
    batch = text_batch(dense, 2, 8)
    assert count_flops(dense, batch) > count_flops(compact, batch) == count_flops(built, batch)
    with torch.no_grad():
        assert built(**batch).logits.shape == dense(**batch).logits.shape


def test_tables_go_between_their_marks(tmp_path):
    text = tmp_path / "page.md"
    text.write_text("a\n<!-- begin: python -m benchmarks.x -->\nold\n<!-- end -->\nb\n")
    page.replace_table(text, "x", ["new"])
    assert text.read_text() == "a\n<!-- begin: python -m benchmarks.x -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(ValueError, match="no place"):
        page.replace_table(text, "y", ["new"])


def test_every_table_of_the_page_has_its_place():
    marks = (page.ROOT / "docs" / "speed.md").read_text()
    for section in speed.SECTIONS:
        assert f"speed {section}" in marks or section in ("speedup", "michel")
