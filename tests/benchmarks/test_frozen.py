"""The benchmark of gates on frozen weights, on a tiny decoder."""

import random

import pytest

from benchmarks import frozen, records
from tests.support.tiny_run import WORDS, make_llama_folder

pytestmark = pytest.mark.runs


def test_every_method_keeps_its_share_and_is_in_the_table(tmp_path, capsys):
    folder = make_llama_folder(tmp_path / "model", num_layers=2)
    (tmp_path / "tinyshakespeare").mkdir()
    rng = random.Random(0)
    for split in ("train", "test"):
        (tmp_path / "tinyshakespeare" / f"{split}.txt").write_text(" ".join(rng.choices(WORDS, k=400)))
    command = ["--model", str(folder), "--data", str(tmp_path), "--output", str(tmp_path / "rows.jsonl")]
    rows = frozen.main([*command, "--keep", "0.6", "--steps", "20", "--length", "16", "--test-blocks", "4"])
    assert rows == records.read(tmp_path / "rows.jsonl")
    assert [row["method"] for row in rows] == ["dense", *frozen.METHODS]
    assert all(row["difference"] < 1e-4 for row in rows[1:])
    assert rows[-1]["method"] == "deterministic"
    assert rows[-1]["largest_value"] != 1
    table = "\n".join(frozen.table(rows))
    assert "| method | neurons in a group | steps | 0.60 of the cost |" in table
    assert "| one-shot | 8 | 12 |" in table
