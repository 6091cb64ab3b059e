"""Sharded models are measured, and the stored results have what docs/howto/several-gpus.md says."""

import json

import pytest

from benchmarks import page, records
from benchmarks.sharding import __main__ as sharding
from benchmarks.sharding.cases import SECTIONS, full_cases
from benchmarks.sharding.models import VOCABULARY
from benchmarks.sharding.tables import TABLES, beyond_new, in_layers, markdown_lines

STORED = records.read(sharding.RESULTS)


def rows_of(section: str, rows: list[dict] = STORED) -> list[dict]:
    return [row for row in rows if row["section"] == section]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Return the rows of the quick form, which writes nothing."""
    results = tmp_path_factory.mktemp("sharding") / "sharding.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "RESULTS", results)
        rows = sharding.main(["--quick"])
    assert not results.exists()
    json.dumps(rows)
    return rows


def check_state(rows: list[dict]) -> None:
    for row in rows:
        assert len(row["own"]) == row["processes"]
        assert sum(row["own"]) == row["all"][0]
        assert max(row["own"]) < 1.01 * row["all"][0] / row["processes"]
        # Whole in each process.
        assert 0 < row["gates"][0] < 0.001 * row["own"][0]


@pytest.mark.processes
def test_quick_form_measures_every_section(quick, capsys):
    assert {row["section"] for row in quick} == set(SECTIONS)
    check_state(rows_of("state", quick))
    for row in [*rows_of("removal", quick), *rows_of("growth", quick)]:
        assert max(row["new_shards"]) < max(row["shards"])
        assert min(row["peak_removal"]) >= min(row["new_shards"])
        assert max(row["parameters"]) < 1
    for section in SECTIONS:
        cells, notes = TABLES[section](rows_of(section, quick))
        assert len(markdown_lines(cells, notes)) == 2 + len(cells) + 2 * len(notes)
    assert all(row["heads"][0] == pytest.approx(2 / 3) for row in rows_of("removal", quick))


def test_every_case_has_a_stored_result():
    for case in full_cases(SECTIONS, (2, 3)):
        wanted = {"section": case.section, "processes": case.processes, **case.arguments}
        assert any((row["hidden"], row["layers"]) == case.shape and wanted.items() <= row.items() for row in STORED), (
            case
        )


def test_stored_state_is_a_share_of_the_whole():
    check_state(rows_of("state"))


def test_stored_removals_take_few_layers_above_the_shards():
    for row in [*rows_of("removal"), *rows_of("growth")]:
        # Old and new shards are both there until the proof has succeeded.
        assert in_layers(row, beyond_new(row, "peak_removal")) < 2
        if row["hidden"] >= 1024:
            # Layers are larger than embeddings.
            assert in_layers(row, beyond_new(row, "peak")) < 3.1
        # Between the two passes of the old model, its output embedding stays gathered.
        embedding = 4 * VOCABULARY * row["hidden"]
        for peak, forward, new in zip(row["peak"], row["peak_forward"], row["new_shards"], strict=True):
            assert peak < forward + new + embedding, row


def test_stored_peaks_do_not_grow_with_the_number_of_layers():
    for name in ("peak_removal", "peak"):
        beyond = {row["layers"]: in_layers(row, beyond_new(row, name)) for row in rows_of("growth")}
        assert beyond[16] < beyond[2] + 0.25


def test_stored_sharded_loading_takes_less_than_the_whole():
    rows = rows_of("loading")
    whole = {(row["hidden"], row["layers"]): max(row["peak"]) for row in rows if not row["sharded"]}
    for row in rows:
        if row["sharded"]:
            assert max(row["peak"]) < 0.8 * whole[row["hidden"], row["layers"]]


def test_tables_are_those_of_the_stored_results(tmp_path, monkeypatch):
    text = page.SEVERAL_GPUS.read_text(encoding="utf-8")
    copy = tmp_path / "page.md"
    copy.write_text(text, encoding="utf-8")
    monkeypatch.setattr(page, "SEVERAL_GPUS", copy)
    page.write_sharding()
    assert copy.read_text(encoding="utf-8") == text
