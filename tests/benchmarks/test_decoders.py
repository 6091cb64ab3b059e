"""The benchmark of decoders, on a tiny one."""

import math
import random
from types import SimpleNamespace

import pytest
import torch

from benchmarks import records
from benchmarks.decoders import __main__ as decoders
from benchmarks.decoders import quality
from benchmarks.decoders.tables import TABLES, summary_table
from tests.support.tiny_run import WORDS, make_llama_folder

pytestmark = pytest.mark.runs

METHODS = ("gates", "first layers")


def test_methods_are_healed_and_in_the_table(tmp_path, capsys):
    folder = make_llama_folder(tmp_path / "model", num_layers=4)
    rng = random.Random(0)
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(" ".join(rng.choices(WORDS, k=9000)))
    files = ["--text", str(tmp_path / "train.txt"), str(tmp_path / "test.txt"), "--runs", str(tmp_path / "runs")]
    command = ["--model", str(folder), *files, "--results", str(tmp_path / "rows.jsonl")]
    few = [
        "--methods",
        *METHODS,
        "--shares",
        "0.5",
        "--seeds",
        "0",
        "--healing",
        "2",
        "--settings",
        "data.max_length=16",
        "data.batch_size=2",
    ]
    decoders.main([*command, *few, "data.validation=" + str(tmp_path / "test.txt")])
    rows = records.read(tmp_path / "rows.jsonl")
    assert [row["method"] for row in rows] == ["as it was", *METHODS]
    assert rows[0]["cost"] == 1
    assert all(row["cost"] == pytest.approx(0.5, abs=0.05) for row in rows[1:])
    assert rows[0]["general_agreement"] == 1
    assert "| train | gates | 0.5 | 8 | 120 + 2 |" in capsys.readouterr().out
    decoders.main([*command, *few])
    assert records.read(tmp_path / "rows.jsonl") == rows


def test_quantized_files_have_the_name_of_their_model(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(quality, "export_compact", lambda _, file, **options: written.append(file) or file.touch())
    monkeypatch.setattr(quality, "ask_llama_cpp", lambda *_, **options: SimpleNamespace(value=[[-1.0, None], [-3.0]]))
    texts = {name: torch.ones(2, 3, dtype=torch.long) for name in ("domain", "general")}
    rows = list(quality.measure_quantized(tmp_path, texts, tmp_path / "gguf", name="as it was"))
    assert [file.name for file in written] == [f"as-it-was-{dtype}.gguf" for dtype in quality.TYPES]
    assert [row["dtype"] for row in rows] == list(quality.TYPES)
    assert rows[0]["domain"] == rows[0]["general"] == pytest.approx(math.exp(2))


def test_tables_have_the_dense_model_of_each_type():
    row = {"run": "gates-0.5-0", "prompting": [2.0, 1.9, 2.1], "writing": [1.5, 1.4, 1.6], "cache_bytes": 50}
    row |= {"dense_cache_bytes": 100, "megabytes": 6.0, "dense_megabytes": 10.0, "gpu": None, "cpu": "x", "cores": 2}
    row |= {"threads": 1, "torch": "2", "transformers": "5"}
    lines = TABLES["speed"]([{**row, "dtype": dtype} for dtype in ("f16", "q8_0")])
    table = "\n".join(lines)
    assert table.count("| dense |") == 2
    assert "| gates-0.5-0 | q8_0 | 2.00 (1.90-2.10) |" in table


def test_the_summary_has_runs_of_one_text_and_the_same_settings():
    about = {"model": "m", "cpu": "x", "general": 5.0}
    quality = [
        {**about, "method": method, "share": share, "seed": seed, "text": text, "domain": domain, **settings}
        for method, share, seed, text, domain, settings in [
            ("as it was", 1.0, 0, "a", 9.0, {}),
            ("gates", 0.5, 1, "a", 2.0, {"healing": 10, "group_size": 8}),
            ("gates", 0.5, 2, "a", 4.0, {"healing": 10, "group_size": 8}),
            ("gates", 0.5, 1, "b", 70.0, {"healing": 10, "group_size": 8}),
            ("one-shot", 0.65, 1, "a", 6.0, {"healing": 10, "group_size": 8}),
            ("one-shot", 0.65, 1, "a", 80.0, {"healing": 20, "group_size": 8}),
            ("one-shot", 0.65, 1, "a", 80.0, {"healing": 10, "group_size": 64}),
        ]
    ]
    table = "\n".join(summary_table(quality, [{"run": "gates-0.5-7", "dtype": "q8_0", "writing": [1.5], "cpu": "x"}]))
    assert "| gates, 0.5 | 3.0 | 5.0 | 1.50x |" in table
    assert "| one-shot, 0.65 | 6.0 |" in table
    assert table.endswith("m, 10 steps, 1-2 seed(s), x.")
